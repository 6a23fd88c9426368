/** The response of a file beside the page; rejects with a sentence. */
export async function fetched(path) {
  const response = await fetch(new URL(path, import.meta.url)).catch(() => null);
  if (!response?.ok) throw new Error(`The page could not fetch ${path}${response ? ` (${response.status})` : ""}.`);
  return response;
}
