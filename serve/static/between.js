// Slide between two images of the same model and classes; every point of the way has an address.

import { $, address, ask, chosen, copy, curl, fileName, imagePath, make, say } from "./service.js";

const STEPS = [0, 0.25, 0.5, 0.75, 1];
const PAUSE_MS = 120; // how long the slider must rest before an image is asked for
const view = { image: null, thumbnails: [], asking: null, pause: null, turn: 0 };

const end = (name) => ({ seed: Number($(`${name}-seed`).value), index: Number($(`${name}-index`).value) });
const words = ({ seed, index }) => `seed ${seed}, index ${index}`;
const position = () => Number($("at").value);

export function setEnd(name, seed, index) {
  $(`${name}-seed`).value = seed;
  $(`${name}-index`).value = index;
}

export function restore(wanted) {
  for (const name of ["from", "to"]) {
    const [seed, index] = (wanted.get(name) ?? "").split("/");
    if (seed && index) setEnd(name, seed, index);
  }
  if (wanted.has("at")) $("at").value = wanted.get("at");
}

export const fragment = () => {
  const [from, to] = [end("from"), end("to")];
  return { from: `${from.seed}/${from.index}`, to: `${to.seed}/${to.index}`, at: $("at").value };
};

async function blobUrl(path, signal) {
  return URL.createObjectURL(await (await ask(path, { signal })).blob());
}

/** Show everything anew: other ends, another model or class. */
export function draw() {
  if (!$("between-form").reportValidity()) return;
  say("");
  clearTimeout(view.pause);
  view.asking?.abort();
  view.asking = new AbortController();
  const [r, from, to] = [chosen(), end("from"), end("to")];
  view.thumbnails.forEach(URL.revokeObjectURL);
  view.thumbnails = [];
  $("steps").replaceChildren(...STEPS.map((at) => step(r, from, to, at, view.asking.signal)));
  describe();
  show();
}

function step(r, from, to, at, signal) {
  const image = make("img", { alt: "" });
  const button = make(
    "button", { type: "button", className: "step" },
    make("span", { className: "well" }, image), make("span", { textContent: at }),
  );
  button.setAttribute("aria-label", `Go to position ${at}`);
  button.dataset.at = at;
  button.addEventListener("click", () => { $("at").value = at; $("at").dispatchEvent(new Event("change")); });
  blobUrl(imagePath(r, from.seed, from.index, { ...to, at }), signal).then(
    (url) => {
      if (signal.aborted) return URL.revokeObjectURL(url);
      view.thumbnails.push(url);
      image.src = url;
    },
    (error) => { if (error.name !== "AbortError") say(error.message); },
  );
  return make("li", {}, button);
}

/** What the slider says of itself, at once; the image follows. */
function describe() {
  const at = position();
  $("at-value").textContent = at;
  const percent = Math.round(at * 100);
  $("at").setAttribute("aria-valuetext", `${percent} % of the way from ${words(end("from"))} to ${words(end("to"))}`);
  for (const button of $("steps").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", Number(button.dataset.at) === at);
  }
}

async function show() {
  const turn = ++view.turn; // the last question wins, whichever is answered first
  const [r, from, way] = [chosen(), end("from"), { ...end("to"), at: position() }];
  const path = imagePath(r, from.seed, from.index, way);
  $("between-figure").setAttribute("aria-busy", "true");
  try {
    const url = await blobUrl(path, view.asking.signal);
    if (turn !== view.turn) return URL.revokeObjectURL(url);
    if (view.image) URL.revokeObjectURL(view.image);
    view.image = url;
    const name = address(r, from.seed, from.index, way);
    $("between-image").src = url;
    $("between-image").alt = `Synthetic image ${name}`;
    $("between-address").textContent = name;
    $("between-curl").textContent = curl(path);
    $("between-save").href = url;
    $("between-save").download = fileName(name, "png");
  } catch (error) {
    if (turn === view.turn && error.name !== "AbortError") say(error.message);
  }
  if (turn === view.turn) $("between-figure").setAttribute("aria-busy", "false");
}

/** Wire the panel. `changed` is called after what it shows has changed; `moved` after the slider alone has. */
export function install(changed, moved) {
  $("between-form").addEventListener("submit", (event) => event.preventDefault());
  $("between-form").addEventListener("change", changed);
  $("at").addEventListener("input", () => {
    describe();
    clearTimeout(view.pause);
    view.pause = setTimeout(show, PAUSE_MS);
  });
  $("at").addEventListener("change", () => {
    clearTimeout(view.pause);
    describe();
    show();
    moved();
  });
  $("between-copy-address").addEventListener("click", (event) => copy(event.target, $("between-address").textContent));
  $("between-copy-curl").addEventListener("click", (event) => copy(event.target, $("between-curl").textContent));
}
