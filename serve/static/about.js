// What is known of the model: the privacy audit's verdicts, what the service refuses because of them, and its card.

import { $, ask, chosen, current, make, modelPath, say, state } from "./service.js";
import { render } from "./markdown.js";

const SCOPES = { images: "Its images", model: "Its networks" };
const GATES = { sample: "images", reconstruct: "model" }; // what the service does, and the scope that speaks about it
const MEANINGS = {
  "pass": "Pass: the attacks tried learned no more of its training patients than tolerated; others might.",
  "fail": "Fail: an attack learned more of its training patients than tolerated.",
  "too little data to say": "Too little data to say: there were too few images or patients for a verdict.",
  "not audited": "Not audited: nobody tested here what it gives away of its training patients.",
};

const badge = (verdict) => make("span", { className: `badge ${verdict.replaceAll(" ", "-")}`, textContent: verdict });

export function drawVerdicts() {
  const { privacy } = current();
  const scopes = Object.keys(SCOPES);
  $("verdicts").replaceChildren(...scopes.flatMap((scope) => [
    make("dt", { textContent: SCOPES[scope] }),
    make("dd", {}, badge(privacy[scope])),
  ]));
  const notes = [...new Set(scopes.map((scope) => MEANINGS[privacy[scope]] ?? ""))];
  if (privacy.override) notes.push(`Overridden, served on the operator's word: “${privacy.override}”`);
  $("privacy-notes").replaceChildren(...notes.map((note) => make("p", { textContent: note })));
}

/** Why the service does not do `what` ("sample" or "reconstruct") with the model, or "" where it does. */
export function refusal(what) {
  const { name, version, kind, privacy, serves } = current();
  if (serves.includes(what)) return "";
  const model = `model ${name} ${version}`;
  if (what === "reconstruct" && kind === "gan") {
    return `A GAN such as ${model} has no encoder, so it can't reconstruct images.`;
  }
  const nothing = what === "sample" ? "shows no images of" : "takes no images for";
  const scope = GATES[what];
  const subject = SCOPES[scope].toLowerCase();
  return `This service ${nothing} ${model}: the privacy audit's verdict on ${subject} is “${privacy[scope]}”.`;
}

const cards = new Map();

export async function draw() {
  say("");
  const path = modelPath(chosen());
  $("card").href = `${path}/card`;
  $("document").href = path;
  try {
    if (!cards.has(path)) cards.set(path, await (await ask(`${path}/card`)).text());
    if (modelPath(chosen()) === path) $("card-text").replaceChildren(...render(cards.get(path)));
  } catch (error) {
    say(error.message);
  }
}

async function openWithKey(event) { // a link can't send the key
  if (!state.key) return;
  event.preventDefault();
  try {
    window.open(URL.createObjectURL(await (await ask(event.target.href)).blob()));
  } catch (error) {
    say(error.message);
  }
}

export function install() {
  for (const id of ["card", "document"]) $(id).addEventListener("click", openWithKey);
}
