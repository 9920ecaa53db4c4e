// The Markdown that model cards use, as DOM nodes: headings, paragraphs, lists, tables, code, bold and links.
// Nothing is parsed as HTML: what this does not know stays visible as text.

import { make } from "./service.js";

const INLINE = /(\*\*[^*]+\*\*|`[^`]+`|\[[^\]]+\]\(https?:\/\/[^\s)]+\))/;

function inline(text) {
  return text.split(INLINE).map((part) => {
    if (part.startsWith("**") && part.length > 4) return make("strong", {}, ...inline(part.slice(2, -2)));
    if (part.startsWith("`") && part.length > 2) return make("code", { textContent: part.slice(1, -1) });
    const link = part.match(/^\[([^\]]+)\]\((https?:.+)\)$/);
    if (link) return make("a", { href: link[2], target: "_blank", rel: "noopener noreferrer", textContent: link[1] });
    return part;
  });
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const ruled = lines.length > 1 && cells(lines[1]).every((cell) => /^:?-+:?$/.test(cell));
  const head = ruled ? cells(lines[0]) : [];
  const titled = head.some(Boolean);
  const rows = lines.slice(ruled ? 2 : 0).map((line) => make("tr", {}, ...cells(line).map((cell, i) => (
    i === 0 && !titled ? make("th", { scope: "row" }, ...inline(cell)) : make("td", {}, ...inline(cell))))));
  const titles = head.map((cell) => make("th", { scope: "col" }, ...inline(cell)));
  const header = titled ? [make("thead", {}, make("tr", {}, ...titles))] : [];
  const body = make("table", {}, ...header, make("tbody", {}, ...rows));
  const scroll = make("div", { className: "scroll", tabIndex: 0 }, body);
  scroll.setAttribute("role", "region"); // so that the keyboard can scroll it on a narrow screen
  scroll.setAttribute("aria-label", titled ? `Table: ${head.filter(Boolean).join(", ")}` : "Table");
  return scroll;
}

const BLOCK = /^(#{1,6} |```|\||[-*] )/;

/** The nodes of a Markdown text; its first heading becomes an h3. */
export function render(text) {
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  const nodes = [];
  const takeWhile = (test) => {
    const end = lines.findIndex((line) => !test(line));
    return lines.splice(0, end < 0 ? lines.length : end);
  };
  const goesOn = (line) => line.trim() && !BLOCK.test(line);
  while (lines.length) {
    const line = lines[0];
    const heading = line.match(/^(#{1,6}) (.*)/);
    if (!line.trim()) {
      lines.shift();
    } else if (heading) {
      lines.shift();
      nodes.push(make(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2])));
    } else if (line.startsWith("```")) {
      lines.shift();
      nodes.push(make("pre", {}, make("code", { textContent: takeWhile((l) => !l.startsWith("```")).join("\n") })));
      lines.shift();
    } else if (line.startsWith("|")) {
      nodes.push(table(takeWhile((l) => l.startsWith("|"))));
    } else if (/^[-*] /.test(line)) {
      const items = [];
      while (lines.length && /^[-*] /.test(lines[0])) {
        items.push([lines.shift().slice(2), ...takeWhile(goesOn).map((l) => l.trim())].join(" "));
      }
      nodes.push(make("ul", {}, ...items.map((item) => make("li", {}, ...inline(item)))));
    } else {
      nodes.push(make("p", {}, ...inline([lines.shift(), ...takeWhile(goesOn)].join(" "))));
    }
  }
  return nodes;
}
