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
      const { room = 0 } = copy.usermeta; // of the names to the right of the last column
      const fitting = Math.max(1, Math.min(copy.columns || 3, Math.floor(width / PANEL)));
      copy.columns = room && fitting < copy.columns ? 1 : fitting;
      copy.spec.width = panel || Math.floor((width - room) / copy.columns) - 60;
      wrapTitles(copy.spec, copy.spec.width);
    } else if ((copy.layer || copy.mark) && !copy.width.step) {
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

  let engine = null;
  function started() {
    engine ??= unpack("engine").then((text) => {
      document.head.append(Object.assign(document.createElement("script"), { text }));
    });
    return engine;
  }

  async function draw(holder, spec, width) {
    if (width < 50 || Math.abs(width - (holder.drawnAt || 0)) < 4) return;
    holder.drawnAt = width;
    const options = {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false,
      tooltip: { theme: "page", disableDefaultStyle: true },
      logLevel: spec.usermeta.quiet ? 1 : 2, // errors only, or warnings, too
    };
    const columns = Math.floor(width / (7 * spec.usermeta.longest + 50));
    const size = { panel: null, columns: Math.max(1, Math.min(4, columns)), limit: width - 60 };
    // The width of panels excludes axes, that of legends their indent: subtract the excess.
    for (let attempt = 0; attempt < 5; attempt += 1) {
      const wanted = fitted(spec, width, size);
      if (holder.result) holder.result.finalize();
      holder.result = await vegaEmbed(holder, wanted, options);
      if (!holder.clientWidth) break; // closed again, so nothing can be measured
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

  // Data: JSON, compressed and in letters, unpacked once and then kept.
  const known = new Map();
  async function unpack(id) {
    if (!known.has(id)) known.set(id, inflated(document.getElementById(id).textContent));
    return known.get(id);
  }

  async function inflated(letters) {
    if (!window.DecompressionStream) throw new Error("this browser cannot unpack data");
    const bytes = Uint8Array.from(atob(letters), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // Figures are drawn when they come near the window; until then their height is reserved.
  function reserve(holder) {
    const [height, panels, most] = holder.dataset.height.split(" ").map(Number);
    const columns = Math.max(1, Math.min(most, Math.floor(holder.clientWidth / PANEL)));
    holder.style.minHeight = `${Math.ceil(panels / columns) * (height + 70) + 30}px`;
  }

  // The width is read at once: what a closed block holds is only open while paper is prepared.
  async function show(holder) {
    const width = Math.floor(holder.clientWidth);
    try {
      holder.spec ??= await unpack(holder.dataset.chart);
      await started();
      await draw(holder, holder.spec, width);
    } catch (error) {
      holder.textContent = `Not drawn: ${error.message}. The numbers are in the table below.`;
      holder.dataset.drawn = "no";
    }
    holder.style.minHeight = "";
  }

  const charts = Array.from(document.querySelectorAll("[data-chart]"));
  function start() {
    const waiting = new Map();
    const sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        if (!target.dataset.drawn) continue;
        clearTimeout(waiting.get(target));
        waiting.set(target, setTimeout(() => draw(target, target.spec, Math.floor(target.clientWidth)), 120));
      }
    });
    const near = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        show(target).then(() => sizes.observe(target));
      }
    }, { rootMargin: "600px" });
    for (const holder of charts) {
      reserve(holder);
      near.observe(holder);
    }
  }

  // Tables: built when they are opened. A heading sorts its column, numbers by value; a second
  // click reverses the order.
  function element(name, text, attributes = {}) {
    const made = Object.assign(document.createElement(name), { textContent: text });
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  // Four digits, as the numbers in the text of the page.
  function figure(value) {
    if (value === null || value === undefined || value === "nan") return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return value;
    if (Number.isInteger(value) && Math.abs(value) < 1e6) {
      return Math.abs(value) < 10000 ? String(value) : value.toLocaleString("en-US");
    }
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e6) return value.toExponential(3).replace(/\.?0*e\+?/, "e");
    return value.toLocaleString("en-US", { maximumSignificantDigits: 4, useGrouping: false });
  }

  function heading(column) {
    const cell = element("th", "", { scope: "col", class: column.role, "aria-sort": "none" });
    const button = element("button", column.name, { type: "button", title: column.hint });
    if (column.unit) button.append(element("span", column.unit, { class: "unit" }));
    cell.append(button);
    return cell;
  }

  function line(columns, index) {
    const row = document.createElement("tr");
    for (const column of columns) {
      const value = column.values[index];
      if (typeof value === "string") {
        row.append(element("td", value, { class: `${column.role} text`, dir: "auto" }));
      } else {
        const cell = element("td", figure(value), { class: `${column.role} number` });
        if (value !== null) cell.title = String(value);
        row.append(cell);
      }
    }
    return row;
  }

  function fill(body, data, order) {
    body.replaceChildren(...order.slice(0, data.shown).map((index) => line(data.columns, index)));
  }

  function build(block, data) {
    if (block.data) return;
    block.data = data;
    const order = (data.columns[0]?.values ?? []).map((_, index) => index);
    const table = element("table", "", { class: "data" });
    table.append(element("caption", `Table ${data.name}`, { class: "hidden" }));
    table.createTHead().insertRow().append(...data.columns.map(heading));
    fill(table.createTBody(), data, order);
    block.querySelector(".scroll").append(table);
  }

  async function open(block) {
    try {
      build(block, await unpack(block.dataset.rows));
    } catch (error) {
      block.querySelector(".scroll").textContent = `Not shown: ${error.message}.`;
    }
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  function sort(cell) {
    const { data } = cell.closest("details");
    const down = cell.getAttribute("aria-sort") === "ascending";
    for (const other of cell.parentElement.cells) other.setAttribute("aria-sort", "none");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const { values } = data.columns[cell.cellIndex];
    const order = values.map((_, index) => index);
    order.sort((a, b) => (down ? -1 : 1) * compare(values[a], values[b]));
    fill(cell.closest("table").tBodies[0], data, order);
  }

  // CSV as RFC 4180. Text that a spreadsheet would run as a formula gets an apostrophe.
  function plain(value) {
    if (value === null) return "";
    let text = String(value);
    const formula = /^[=+\-@\t\r]/.test(text) && (text.trim() === "" || Number.isNaN(Number(text)));
    if (typeof value === "string" && formula) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  async function download(button) {
    const { columns } = await unpack(button.closest("details").dataset.rows);
    const lines = [columns.map((column) => plain(column.name))];
    columns[0]?.values.forEach((_, index) => {
      lines.push(columns.map((column) => plain(column.values[index])));
    });
    const text = lines.map((cells) => `${cells.join(",")}\r\n`).join("");
    const link = element("a", "", { download: button.dataset.file });
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function click({ target }) {
    const cell = target.closest(".data th");
    const button = target.closest("button.csv");
    if (cell) sort(cell);
    if (button) download(button);
  }

  // Paper shows everything, and cannot wait: data are unpacked when the page has nothing to do.
  const tables = Array.from(document.querySelectorAll("details[data-rows]"));
  async function unpackAll() {
    for (const block of tables) {
      await new Promise((go) => (window.requestIdleCallback ?? setTimeout)(go));
      const id = block.dataset.rows;
      block.waiting = await unpack(id).catch(() => null);
    }
    for (const holder of charts) {
      await new Promise((go) => (window.requestIdleCallback ?? setTimeout)(go));
      holder.spec ??= await unpack(holder.dataset.chart).catch(() => undefined);
    }
    if (charts.length) await started();
    document.documentElement.dataset.unpacked = "yes";
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
    for (const block of tables) if (block.waiting) build(block, block.waiting);
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    for (const block of closed) block.open = true;
    // A figure in a closed block has no width.
    for (const holder of charts) if (holder.spec) show(holder);
  });
  addEventListener("afterprint", () => {
    for (const block of closed) block.open = false;
  });
  addEventListener("hashchange", reveal);
  document.addEventListener("click", click);
  document.addEventListener("toggle", ({ target }) => {
    if (target.open && target.dataset.rows) open(target);
  }, true);
  reveal();
  start();
  unpackAll();
})();
