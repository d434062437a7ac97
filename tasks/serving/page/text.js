// What a model wrote, as DOM nodes: its text is only ever text, never HTML.

export function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;

/* The source of each block: a fenced piece of code, a list, or the lines up to an empty one. */
function blocks(text) {
  const found = [];
  let [lines, fence] = [[], ""];
  const close = () => {
    if (lines.length) found.push(lines.join("\n"));
    [lines, fence] = [[], ""];
  };
  for (const line of text.split("\n")) {
    const mark = line.match(/^\s*(`{3,}|~{3,})/)?.[1];
    if (fence) {
      lines.push(line);
      if (mark?.startsWith(fence) && line.trim() === mark) close();
    } else if (mark) {
      close();
      [lines, fence] = [[line], mark];
    } else if (!line.trim()) {
      close();
    } else {
      const starts = ITEM.test(line);
      if (lines.length && starts && !ITEM.test(lines[0])) close();
      lines.push(line);
    }
  }
  close();
  return found;
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((piece, i) => {
    if (i % 2 === 0) return piece;
    return piece[0] === "`" ? make("code", {}, piece.slice(1, -1)) : make("strong", {}, piece.slice(2, -2));
  });
}

function block(source) {
  const lines = source.split("\n");
  const mark = lines[0].match(/^\s*(`{3,}|~{3,})/)?.[1];
  if (mark) {
    const closed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
    const code = lines.slice(1, closed ? -1 : undefined).join("\n");
    return make("pre", { tabIndex: 0 }, make("code", {}, code)); // it scrolls, so the keyboard must reach it
  }
  const first = lines[0].match(ITEM);
  if (!first) {
    const heading = lines.length === 1 && source.match(/^#{1,6}\s+(.*)$/);
    return make("p", { dir: "auto" }, ...(heading ? [make("strong", {}, heading[1])] : inline(source)));
  }
  const items = [];
  for (const line of lines) {
    const item = line.match(ITEM);
    if (item) items.push(item[2]);
    else items.push(`${items.pop()}\n${line.trim()}`);
  }
  const list = first[1] ? make("ol", { start: Number(first[1]) }) : make("ul");
  list.append(...items.map((item) => make("li", { dir: "auto" }, ...inline(item))));
  return list;
}

/* Shows text in a node; blocks that did not change stay, so that a reader's selection lives while more arrives. */
export function write(node, text) {
  const sources = blocks(text);
  const kept = node.sources ?? [];
  let same = 0;
  while (same < sources.length && sources[same] === kept[same]) same++;
  while (node.childNodes.length > same) node.lastChild.remove();
  node.append(...sources.slice(same).map(block));
  node.sources = sources;
}
