"use strict";
(() => {
  // Figures: drawn at the available width, and again when it changes.
  const PANEL = 210;
  const PADDING = 5;

  // A title longer than its plot would push panels apart, so it is wrapped.
  function wrapped(title, width) {
    const lines = [""];
    for (const word of title.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (7 * longer.length <= width || lines.at(-1) === "") lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines;
  }

  function wrapTitles(part, width) {
    const x = part.encoding && part.encoding.x;
    if (x && typeof x.title === "string") x.title = wrapped(x.title, width);
    for (const inner of part.layer || []) wrapTitles(inner, width);
  }

  function fitted(spec, width, { panel, columns, limit }) {
    const copy = structuredClone(spec);
    copy.config.legend = { ...copy.config.legend, columns, labelLimit: limit };
    if (width < 500) copy.config.axis = { ...copy.config.axis, labelLimit: 0.42 * width };
    if (copy.facet) {
      copy.columns = Math.max(1, Math.min(copy.columns || 3, Math.floor(width / PANEL)));
      copy.spec.width = panel || Math.floor(width / copy.columns) - 60;
      wrapTitles(copy.spec, copy.spec.width);
    } else if (copy.layer || copy.mark) {
      copy.width = width;
      wrapTitles(copy, width < 500 ? 0.55 * width : 0.8 * width);
    }
    return copy;
  }

  // By how many pixels parts of a drawing exceed the width; the drawing may be scaled down.
  function over(holder, parts, width) {
    const svg = holder.querySelector("svg");
    const whole = svg.getBoundingClientRect();
    const scale = Number(svg.getAttribute("width")) / whole.width;
    const found = Array.from(svg.querySelectorAll(parts), (e) => e.getBoundingClientRect().right);
    return found.length ? Math.round(scale * (Math.max(...found) - whole.left)) + PADDING - width : 0;
  }

  async function draw(holder, spec) {
    const width = Math.floor(holder.clientWidth);
    if (width < 50 || Math.abs(width - (holder.drawnAt || 0)) < 4) return;
    holder.drawnAt = width;
    const options = {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
      tooltip: { theme: "page", disableDefaultStyle: true },
    };
    const columns = Math.floor(width / (7 * spec.usermeta.longest + 50));
    const size = { panel: null, columns: Math.max(1, Math.min(4, columns)), limit: width - 60 };
    // The width of panels excludes axes, that of legends their indent: subtract the excess.
    for (let attempt = 0; attempt < 5; attempt += 1) {
      const wanted = fitted(spec, width, size);
      if (holder.result) holder.result.finalize();
      holder.result = await vegaEmbed(holder, wanted, options);
      const legend = over(holder, ".role-legend", width);
      const panels = wanted.facet ? over(holder, ".cell", width) : 0;
      if (legend <= 4 && Math.abs(panels) <= 4) break;
      if (Math.abs(panels) > 4) {
        size.panel = Math.max(80, Math.floor(wanted.spec.width - (panels + 1) / wanted.columns));
      }
      if (legend > 4 && size.columns > 1) size.columns -= 1;
      else if (legend > 4) size.limit = Math.max(60, size.limit - legend);
    }
    holder.dataset.drawn = "yes";
  }

  async function start() {
    const waiting = new Map();
    const watcher = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        clearTimeout(waiting.get(target));
        waiting.set(target, setTimeout(() => draw(target, target.spec), 120));
      }
    });
    for (const holder of document.querySelectorAll("[data-chart]")) {
      holder.spec = JSON.parse(document.getElementById(holder.dataset.chart).textContent);
      try {
        await draw(holder, holder.spec);
      } catch (error) {
        holder.textContent = `Not drawn: ${error.message}. The numbers are in the table below.`;
      }
      watcher.observe(holder);
    }
  }

  // Tables: a heading sorts its column, numbers by value; a second click reverses the order.
  function value(row, index) {
    const cell = row.cells[index];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  }

  function compare(a, b) {
    const numbers = typeof a === "number" && typeof b === "number";
    if (numbers) return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(event) {
    const heading = event.target.closest(".data th");
    if (!heading) return;
    const body = heading.closest("table").tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    const index = heading.cellIndex;
    const rows = Array.from(body.rows);
    rows.sort((a, b) => sign * compare(value(a, index), value(b, index)));
    body.append(...rows);
  }

  // A link into a closed block opens it; paper shows every block.
  function reveal() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const block = target && target.closest("details");
    if (block) {
      block.open = true;
      block.scrollIntoView();
    }
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    for (const block of closed) block.open = true;
  });
  addEventListener("afterprint", () => {
    for (const block of closed) block.open = false;
  });
  addEventListener("hashchange", reveal);
  document.addEventListener("click", sort);
  reveal();
  start();
})();
