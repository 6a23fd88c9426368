"""What mkdocs does beside its plugins: pictures from outside docs/, and the live page.

Pages show a picture of the repository by its place, as in ![...](../model_cards/avatars/training.png), so that it
appears on GitHub, too. On the site it gets the same place below the root. All pages lie in docs/ itself.

Where the environment variable LIVE_PAGE names a model, such as model_cards/avatars, its page for browsers is written to
live/, and the comment <!-- live page --> becomes a frame that shows it.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent
PICTURE = re.compile(r"(!\[[^\]]*\]\()\.\./([\w./-]+\.png)(?=\))")
MARK = "<!-- live page -->"
FRAME = """<details>
<summary>Draw with this model here, in your browser (a download of 19 MB)</summary>
<iframe src="live/index.html" title="The model draws" loading="lazy" width="100%" height="900"></iframe>
</details>"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures that pages show; one that is not there ends the build."""
    for page in files.documentation_pages():
        for _, name in PICTURE.findall(page.content_string):
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **more: Any) -> str:
    """Name the pictures by their place on the site, and show the live page."""
    return PICTURE.sub(r"\1\2", markdown).replace(MARK, FRAME if os.environ.get("LIVE_PAGE") else "")


def on_post_build(config: Any) -> None:
    """Write the live page."""
    if model := os.environ.get("LIVE_PAGE"):
        from diffusers_ict.web.build import build_page

        build_page(str(ROOT / model), Path(config["site_dir"], "live"), dtype="fp16", title=Path(model).name)
