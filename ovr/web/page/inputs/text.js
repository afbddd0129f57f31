// A box for a text.

import { element } from "../results.js";

/** Build the box into `host`, and call `changed(text)` with what is in it, null for nothing. */
export function text(host, { changed }) {
  const box = element("textarea", { id: "text", rows: 6, dir: "auto", placeholder: "Type or paste a text" });
  const clear = element("button", { type: "button" }, "Clear");
  const update = () => changed(box.value.trim() === "" ? null : box.value);
  box.setAttribute("aria-labelledby", "input-title");
  box.addEventListener("input", update);
  clear.addEventListener("click", () => {
    box.value = "";
    box.focus();
    update();
  });
  host.append(box, element("div", { className: "tools" }, clear));
  update();
}
