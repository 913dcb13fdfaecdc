// Zoom (click a frame; Escape or the topmost frame resets) and search. Without scripts the drawing
// is still complete, and each frame's title has its numbers.
(function () {
  const frames = Array.from(document.querySelectorAll(".frame"), (node) => {
    const rect = node.querySelector("rect");
    const number = (name) => parseFloat(rect.getAttribute(name));
    return {
      node,
      rect,
      text: node.querySelector("text"),
      name: node.querySelector("title").textContent.split("\n")[0],
      label: node.getAttribute("data-label"),
      x: number("x"),
      y: number("y"),
      width: number("width"),
    };
  });
  if (!frames.length) return;
  const all = frames[0];
  const CHAR = 7.2;
  const SLACK = 0.01;

  function place(frame, x, width) {
    frame.rect.setAttribute("x", x);
    frame.rect.setAttribute("width", width);
    const room = Math.floor((width - 6) / CHAR);
    frame.text.setAttribute("x", x + 3);
    frame.text.textContent =
      room < 3 ? "" : frame.label.length > room ? frame.label.slice(0, room - 1) + "…" : frame.label;
  }

  function zoom(to) {
    const scale = all.width / to.width;
    for (const frame of frames) {
      const holds =
        frame.x <= to.x + SLACK && frame.x + frame.width >= to.x + to.width - SLACK;
      const inside =
        frame.x >= to.x - SLACK && frame.x + frame.width <= to.x + to.width + SLACK;
      const outer = frame.y < to.y && holds;
      const shown = outer || (frame.y >= to.y && inside);
      frame.node.classList.toggle("outer", outer);
      frame.node.classList.toggle("gone", !shown);
      if (outer) place(frame, all.x, all.width);
      else if (shown) place(frame, all.x + (frame.x - to.x) * scale, frame.width * scale);
    }
  }

  function search() {
    const wanted = prompt("Part of a function's name:");
    let share = 0;
    let end = -1;
    const found = frames.filter((frame) => wanted && frame.name.includes(wanted));
    for (const frame of frames) frame.node.classList.toggle("found", found.includes(frame));
    // A match below another match does not count twice.
    for (const frame of found.sort((a, b) => a.x - b.x || b.width - a.width)) {
      if (frame.x + SLACK < end) continue;
      share += frame.width;
      end = frame.x + frame.width;
    }
    const result = document.getElementById("result");
    result.textContent = wanted ? ((100 * share) / all.width).toFixed(1) + " % of the time" : "";
  }

  for (const frame of frames) frame.node.addEventListener("click", () => zoom(frame));
  document.getElementById("search").addEventListener("click", search);
  document.addEventListener("keydown", (event) => event.key === "Escape" && zoom(all));
})();
