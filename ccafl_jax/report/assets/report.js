"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // Tables: a click on a heading sorts; a third one restores the order of the page.
  const numberOf = (text) => {
    const found = text.replace("–", "").trim();
    return found !== "" && !Number.isNaN(Number(found)) ? Number(found) : null;
  };
  const compare = (a, b) => {
    const [x, y] = [numberOf(a), numberOf(b)];
    return x !== null && y !== null ? x - y : a.localeCompare(b, undefined, { numeric: true });
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "" }[head.getAttribute("aria-sort")];
        const order = next === undefined ? "ascending" : next;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order) head.setAttribute("aria-sort", order);
        const text = (row) => row.cells[column].textContent.trim();
        const rows = [...original];
        if (order) rows.sort((a, b) => compare(text(a), text(b)) * (order === "ascending" ? 1 : -1));
        body.append(...rows);
      });
    });
  });

  // Rank lists: by kind, camera of the query and average precision.
  const filter = byId("filter");
  if (filter) {
    const lists = [...document.querySelectorAll("article.list")];
    const apply = () => {
      const kind = byId("list-kind").value;
      const camera = byId("list-camera").value;
      const low = Number(byId("list-low").value || 0);
      const high = Number(byId("list-high").value || 100);
      let count = 0;
      for (const list of lists) {
        const { kind: own, camera: seen, ap } = list.dataset;
        const fits =
          (!kind || own === kind) && (!camera || seen === camera) && ap >= low && ap <= high;
        list.hidden = !fits;
        count += fits ? 1 : 0;
      }
      byId("list-count").textContent = `${count} of ${lists.length} queries`;
      byId("no-lists").hidden = count > 0;
    };
    filter.addEventListener("input", apply);
    filter.addEventListener("reset", () => setTimeout(apply));
    filter.addEventListener("submit", (event) => event.preventDefault());
  }

  // Embeddings: all planes move together, and show one identity or camera among the others.
  const planes = [...document.querySelectorAll("svg.plane")];
  if (planes.length) {
    const size = 640;
    let view = { x: 0, y: 0, side: size };
    const show = () => {
      const scale = Math.sqrt(view.side / size);
      planes.forEach((plane) => {
        plane.setAttribute("viewBox", `${view.x} ${view.y} ${view.side} ${view.side}`);
        plane.querySelectorAll("defs > g").forEach((shape) => {
          shape.setAttribute("transform", `scale(${scale})`);
        });
      });
    };
    const zoom = (factor, x = view.x + view.side / 2, y = view.y + view.side / 2) => {
      const side = Math.min(size * 2, Math.max(size / 40, view.side * factor));
      const change = side / view.side;
      view = { x: x - (x - view.x) * change, y: y - (y - view.y) * change, side };
      show();
    };
    const move = (dx, dy) => {
      view = { ...view, x: view.x + dx * view.side, y: view.y + dy * view.side };
      show();
    };
    const reset = () => {
      view = { x: 0, y: 0, side: size };
      show();
    };
    byId("zoom-in").addEventListener("click", () => zoom(0.7));
    byId("zoom-out").addEventListener("click", () => zoom(1 / 0.7));
    byId("zoom-reset").addEventListener("click", reset);
    const keys = {
      "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), 0: reset,
      ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0),
      ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
    };
    planes.forEach((plane) => {
      plane.addEventListener("keydown", (event) => {
        if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        keys[event.key]();
      });
      plane.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
        event.preventDefault();
        const box = plane.getBoundingClientRect();
        const x = view.x + ((event.clientX - box.left) / box.width) * view.side;
        const y = view.y + ((event.clientY - box.top) / box.height) * view.side;
        zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, x, y);
      }, { passive: false });
      const held = new Map();
      const apart = () => {
        const [a, b] = [...held.values()];
        return Math.hypot(a.x - b.x, a.y - b.y);
      };
      plane.addEventListener("pointerdown", (event) => {
        held.set(event.pointerId, { x: event.clientX, y: event.clientY });
        plane.setPointerCapture(event.pointerId);
      });
      plane.addEventListener("pointermove", (event) => {
        const last = held.get(event.pointerId);
        if (!last) return;
        const before = held.size === 2 ? apart() : 0;
        held.set(event.pointerId, { x: event.clientX, y: event.clientY });
        const width = plane.getBoundingClientRect().width;
        if (held.size === 2) zoom(before / Math.max(apart(), 1));
        else move((last.x - event.clientX) / width, (last.y - event.clientY) / width);
      });
      ["pointerup", "pointercancel"].forEach((name) =>
        plane.addEventListener(name, (event) => held.delete(event.pointerId)));
    });
    const pick = () => {
      const [pid, camera] = [byId("plane-pid").value, byId("plane-camera").value];
      document.querySelectorAll("svg.plane use").forEach((point) => {
        const fits = (!pid || point.dataset.pid === pid) && (!camera || point.dataset.camera === camera);
        point.classList.toggle("dim", !fits);
      });
    };
    byId("plane-pid").addEventListener("change", pick);
    byId("plane-camera").addEventListener("change", pick);
  }
})();
