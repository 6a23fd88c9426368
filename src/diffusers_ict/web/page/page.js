// The page: loads the model, connects the panels, and says in one sentence what goes wrong.

import { Between } from "./between.js";
import { Edit } from "./edit.js";
import { Model } from "./model.js";
import { Ray } from "./ray.js";
import { hasWebAssembly } from "./runtime.js";
import { Samples } from "./samples.js";

const $ = (id) => document.getElementById(id);

function say(sentence) {
  $("status").textContent = sentence;
  $("status").hidden = !sentence;
}

/** Fill in what depends on the model: title, classes, licence, backends. */
function describe({ config, className }) {
  const { title, repository, license, num_classes: classes, channels, method } = config;
  document.title = $("title").textContent = title;
  const options = Array.from({ length: classes ?? 0 }, (_, label) => [className(label), label]);
  $("class").append(new Option("All", "all"), ...options.map((option) => new Option(...option)));
  $("edit-class").append(...options.map((option) => new Option(...option)));
  for (const element of document.querySelectorAll(".classes")) element.hidden = !classes;
  document.querySelector(".colour").hidden = channels !== 3;
  document.body.classList.toggle("alpha", channels === 4);
  for (const input of document.querySelectorAll("#steps input, #edit-steps input")) {
    input.parentElement.hidden = input.value > config.sampling_sigmas.length;
    if (input.checked && input.parentElement.hidden) input.closest("fieldset").querySelector("input").checked = true;
  }
  if (repository) {
    const link = Object.assign(document.createElement("a"), { textContent: repository });
    link.href = `https://huggingface.co/${repository}`;
    $("about").append("Model: ", link, license ? `, licence ${license}. ` : ". ");
  }
  $("about").append("Method: ", Object.assign(document.createElement("a"), {
    textContent: method.name, href: method.paper,
  }), ".");
}

async function switchBackend(model, redraw) {
  const backend = $("backend").value;
  $("backend-note").textContent = "Loading.";
  try {
    await model.start(backend);
    $("backend-note").textContent = "";
  } catch (error) {
    $("backend").value = model.backend;
    $("backend-note").textContent = `WebGPU is not used here. ${error.message}`;
  }
  redraw();
}

async function main() {
  if (!hasWebAssembly()) {
    throw new Error("This page needs a browser with WebAssembly and its SIMD instructions, and this one has none.");
  }
  say("Loading the model.");
  const model = await Model.load();
  describe(model);
  const threads = Number(new URLSearchParams(location.search).get("threads"));
  let total = 0;
  const onBytes = (bytes) => say(`Loading the runtime and the model: ${Math.round((total += bytes) / 1e6)} MB.`);
  await model.start("wasm", { threads, onBytes });
  say("");
  $("main").hidden = false;
  $("runtime").hidden = !model.config.webgpu;

  const fail = (error) => say(error.message);
  const [samples, ray, edit, between] = [Samples, Ray, Edit, Between].map((Panel) => new Panel(model, fail));
  const show = (selected) => {
    const selection = samples.selection;
    if (!selection) return; // before it is drawn
    ray.show(selection);
    edit.show(selection, selected);
    between.show(selection, samples.sigmas);
  };
  samples.addEventListener("select", () => show(true));
  samples.addEventListener("update", () => show(false));
  document.addEventListener("input", () => say("")); // what went wrong before
  $("backend").addEventListener("change", () => switchBackend(model, samples.draw));
  await samples.draw();
  return { model, samples, ray, edit, between };
}

// For whoever drives the page by a script: the model, whose `draw` takes noises, and the panels.
window.consistency = main();
window.consistency.catch((error) => say(error.message));
