"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const element = (id) => document.getElementById(id);
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const surfaces = new Map(data.surfaces.map((s) => [s.key, s]));
  const FRAMES = 24; // of one period of a vibration
  const FRAME_TIME = 50; // [ms]
  const ARROWS = 3; // length of the arrows of a vibration over the way of its atoms
  const FIELD_OF_VIEW = 20, CAMERA_DISTANCE = 150; // [degree], [angstrom]: as 3Dmol.js has them

  const state = {
    surface: data.first, texture: "solid", opacity: 0.85, labels: "none", style: "ball", bondOrders: false,
    dipole: false, mode: -1,
    isovalue: Object.fromEntries(data.surfaces.map((s) => [s.kind, s.isovalue])),
  };
  let viewer = null, model = null, shapes = [], wanted = 0, motion = 0;

  // ---- volumes -------------------------------------------------------------------------------------------------

  const decoded = new Map();

  /** The values of a surface on the grid, as `mlsemi.report.volumes.pack` wrote them. */
  function values(packed) {
    if (!decoded.has(packed)) decoded.set(packed, decode(packed));
    return decoded.get(packed);
  }

  const volumeOf = (surface) => surface.volume || surfaces.get(surface.volume_of).volume;

  async function decode(packed) {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const n = planes.length / 2, [, ny, nz] = data.grid.shape;
    const whole = new Int32Array(n);
    for (let i = 0; i < n; i++) {
      const zigzag = planes[i] | (planes[n + i] << 8);
      whole[i] = zigzag & 1 ? -((zigzag + 1) >> 1) : zigzag >> 1;
    }
    for (let i = 1; i < n; i++) if (i % nz) whole[i] += whole[i - 1];
    for (let i = nz; i < n; i++) if (Math.floor(i / nz) % ny) whole[i] += whole[i - nz];
    let array = Float32Array.from(whole), size = data.grid.shape;
    for (const axis of [2, 1, 0]) [array, size] = halved(array, size, axis);
    for (let i = 0; i < array.length; i++) array[i] = packed.knee * Math.sinh(packed.step * array[i]);
    return {array, size};
  }

  /** Values with one more between any two along an axis, by cubic interpolation: smooth surfaces from few points. */
  function halved(array, size, axis) {
    const n = size[axis], stride = size.slice(axis + 1).reduce((a, b) => a * b, 1), blocks = array.length / (n * stride);
    const longer = 2 * n - 1, out = new Float32Array(blocks * longer * stride);
    for (let block = 0; block < blocks; block++) {
      for (let k = 0; k < n; k++) {
        const from = (block * n + k) * stride, to = (block * longer + 2 * k) * stride;
        const before = from - (k > 0 ? stride : 0), next = from + stride, after = next + (k < n - 2 ? stride : 0);
        for (let i = 0; i < stride; i++) {
          out[to + i] = array[from + i];
          if (k < n - 1) {
            out[to + stride + i] =
              0.5625 * (array[from + i] + array[next + i]) - 0.0625 * (array[before + i] + array[after + i]);
          }
        }
      }
    }
    return [out, size.map((m, i) => i === axis ? longer : m)];
  }

  function volume({array, size: [nx, ny, nz]}) {
    const [x, y, z] = data.grid.origin, h = data.grid.spacing / 2, made = new $3Dmol.VolumeData("", "none");
    return Object.assign(made, {
      origin: {x, y, z}, size: {x: nx, y: ny, z: nz}, unit: {x: h, y: h, z: h}, data: array,
    });
  }

  // ---- the scene -----------------------------------------------------------------------------------------------

  function place(k, shift) {
    const [x, y, z] = data.atoms[k].at, [dx, dy, dz] = shift ? shift[k] : [0, 0, 0];
    return {x: x + dx, y: y + dy, z: z + dz};
  }

  function atoms(shift) {
    return data.atoms.map((atom, k) => {
      const mine = data.bonds.filter((b) => b.pair.includes(k));
      return {
        elem: atom.symbol, ...place(k, shift), serial: k, index: k,
        bonds: mine.map((b) => b.pair[0] === k ? b.pair[1] : b.pair[0]), bondOrder: mine.map((b) => b.lines),
      };
    });
  }

  const STYLES = {
    ball: {stick: {radius: 0.11}, sphere: {scale: 0.24}},
    stick: {stick: {radius: 0.14}},
    space: {sphere: {scale: 0.95}},
  };
  const ELEMENTS = {H: "#e6e8eb", C: "#7b8591", N: "#4a6ee0", O: "#e0403c"};

  function drawModel() {
    motion++; // what moves stops
    viewer.removeAllModels();
    model = viewer.addModel();
    model.addAtoms(atoms());
    if (state.mode >= 0 && !calm.matches) {
      const mode = data.modes[state.mode];
      for (let frame = 1; frame < FRAMES; frame++) {
        const phase = Math.sin((2 * Math.PI * frame) / FRAMES) * data.swing;
        model.addFrame(atoms(mode.shift.map((v) => v.map((x) => x * phase))));
      }
    }
    const style = STYLES[state.style], colorscheme = {prop: "elem", map: {...$3Dmol.elementColors.Jmol, ...ELEMENTS}};
    const full = Object.fromEntries(Object.entries(style).map(([kind, spec]) => [kind, {...spec, colorscheme}]));
    viewer.setStyle({}, full);
    if (state.mode >= 0 && !calm.matches) swing(++motion, -1);
  }

  /** Shows the frame that it is time for, as often as the browser is ready to draw. */
  function swing(mine, last) {
    if (mine !== motion) return;
    const frame = Math.floor(performance.now() / FRAME_TIME) % FRAMES;
    const drawn = frame === last ? Promise.resolve() : viewer.setFrame(frame).then(() => viewer.render());
    drawn.then(() => requestAnimationFrame(() => swing(mine, frame)));
  }

  function drawLabels() {
    viewer.removeAllLabels();
    const common = {
      fontSize: 13, fontColor: color("ink"), backgroundColor: color("stage"), backgroundOpacity: 0.78,
      borderThickness: 0, inFront: true, alignment: "center",
    };
    if (state.mode < 0 && state.labels !== "none") {
      data.atoms.forEach((atom, k) => viewer.addLabel(atom.labels[state.labels], {...common, position: place(k)}));
    }
    if (state.mode < 0 && state.bondOrders) {
      for (const bond of data.bonds.filter((b) => b.order)) {
        const [a, b] = bond.pair.map((k) => place(k));
        const position = {x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, z: (a.z + b.z) / 2};
        viewer.addLabel(bond.order, {...common, fontSize: 12, fontColor: color("accent"), position});
      }
    }
  }

  async function drawShapes() {
    const mine = ++wanted, surface = surfaces.get(state.surface);
    const field = surface && state.mode < 0 ? await values(volumeOf(surface)) : null;
    const painted = field && surface.paint ? await values(surface.paint.volume) : null;
    if (mine !== wanted) return; // something else was asked for meanwhile
    shapes.forEach((shape) => viewer.removeShape(shape));
    shapes = [];
    if (field) {
      const isoval = state.isovalue[surface.kind], grid = volume(field);
      const spec = {opacity: state.opacity, wireframe: state.texture === "mesh", smoothness: 2};
      if (painted) {
        const {most} = surface.paint, colors = [color("negative"), "#f4f4f4", color("positive")];
        spec.voldata = volume(painted);
        spec.volscheme = new $3Dmol.Gradient.CustomLinear(-most, most, colors);
      }
      const plain = surface.signed ? color("positive") : color("density");
      shapes.push(viewer.addIsosurface(grid, {...spec, isoval, ...(painted ? {} : {color: plain})}));
      if (surface.signed) {
        shapes.push(viewer.addIsosurface(grid, {...spec, isoval: -isoval, color: color("negative")}));
      }
      tellIsovalue(field.array);
    }
    if (state.dipole && data.dipole && state.mode < 0) shapes.push(arrow(data.dipole.start, data.dipole.end, 0.07));
    if (state.mode >= 0) {
      data.modes[state.mode].shift.forEach((v, k) => {
        const size = Math.hypot(...v) * data.swing * ARROWS;
        if (size < 0.12) return;
        const from = data.atoms[k].at, to = from.map((x, i) => x + v[i] * data.swing * ARROWS);
        shapes.push(arrow(from, to, 0.06));
      });
    }
    viewer.render();
    element("viewer").dataset.drawn = String(mine);
  }

  function arrow(from, to, radius) {
    const [start, end] = [from, to].map(([x, y, z]) => ({x, y, z}));
    return viewer.addArrow({start, end, radius, mid: 0.72, radiusRatio: 2.1, color: color("arrow")});
  }

  function drawLegend() {
    const parts = [], surface = surfaces.get(state.surface);
    if (state.mode >= 0) parts.push(["arrow", data.modes[state.mode].label]);
    else {
      if (surface && surface.signed) parts.push(["positive", surface.signs[0]], ["negative", surface.signs[1]]);
      else if (surface && surface.paint) parts.push(["positive", surface.paint.signs[0]], ["negative", surface.paint.signs[1]]);
      else if (surface) parts.push(["density", surface.label]);
      if (state.dipole && data.dipole) parts.push(["arrow", "arrow: " + data.dipole.label]);
    }
    element("legend").replaceChildren(...parts.map(([swatch, text]) => {
      const item = document.createElement("span");
      item.style.setProperty("--swatch", `var(--${swatch})`);
      item.textContent = text;
      return item;
    }));
  }

  // ---- isovalues: the slider is logarithmic --------------------------------------------------------------------

  function range() {
    const start = surfaces.get(state.surface).isovalue;
    return [start / 8, start * 8];
  }

  function tellIsovalue(array) {
    const surface = surfaces.get(state.surface), isovalue = state.isovalue[surface.kind];
    let text = `${isovalue.toPrecision(2)} ${surface.unit}`;
    if (surface.kind === "orbital") {
      let inside = 0, whole = 0;
      for (const v of array) {
        whole += v * v;
        if (Math.abs(v) > isovalue) inside += v * v;
      }
      text += `, ${Math.round((100 * inside) / whole)} % inside`;
    }
    element("isovalue-text").textContent = text;
  }

  function setSlider() {
    const surface = surfaces.get(state.surface), slider = element("isovalue");
    slider.disabled = !surface;
    element("isovalue-text").textContent = "";
    if (!surface) return;
    const [low, high] = range();
    slider.value = String(Math.round((100 * Math.log(state.isovalue[surface.kind] / low)) / Math.log(high / low)));
  }

  // ---- what the user chooses -----------------------------------------------------------------------------------

  async function show(surface, mode = -1) {
    const other = mode !== state.mode;
    state.surface = surface;
    state.mode = mode;
    element("surface").value = surface;
    all(".level").forEach((level) => {
      const chosen = level.dataset.surface === surface;
      level.setAttribute("aria-checked", String(chosen));
      level.setAttribute("tabindex", chosen ? "0" : "-1");
    });
    if (!surfaces.has(surface) || !surface.startsWith("mo")) all(".level")[0]?.setAttribute("tabindex", "0");
    all("[data-mode]").forEach((row) => row.classList.toggle("chosen", Number(row.dataset.mode) === mode));
    if (element("mode")) element("mode").value = String(mode);
    setSlider();
    if (!viewer) return;
    if (other) drawModel();
    drawLegend();
    drawLabels();
    await drawShapes();
  }

  /** The orbital above or below in energy; from anything else, the one that is shown first. */
  function step(by) {
    const order = data.surfaces.filter((s) => s.kind === "orbital").map((s) => s.key);
    const at = order.indexOf(state.surface);
    const next = at < 0 ? data.first : order[Math.min(Math.max(at + by, 0), order.length - 1)];
    return next ? show(next) : null;
  }

  /** The first view: from the broad side, as near as the picture holds all atoms and some surface around them. */
  function resetView() {
    const reach = (axis, room) => Math.max(...data.atoms.map((a) => Math.abs(a.at[axis]))) + room;
    const {clientWidth, clientHeight} = element("viewer"), slope = Math.tan((Math.PI / 180) * (FIELD_OF_VIEW / 2));
    const half = Math.max(reach(1, 1.8), (reach(0, 1.8) * clientHeight) / Math.max(clientWidth, 1));
    viewer.setView([0, 0, 0, CAMERA_DISTANCE - half / slope - reach(2, 0), 0, 0, 0, 1]);
    viewer.rotate(-14, "y");
    viewer.rotate(32, "x"); // a little from above: lobes on both sides of a planar molecule are to be seen
    viewer.render();
  }

  function connect() {
    const on = (id, event, act) => element(id)?.addEventListener(event, act);
    on("surface", "change", (e) => show(e.target.value));
    on("previous", "click", () => step(-1));
    on("next", "click", () => step(1));
    on("mode", "change", (e) => show("none", Number(e.target.value)));
    on("controls", "submit", (e) => e.preventDefault());
    all(".level").forEach((level) => {
      level.addEventListener("click", () => show(level.dataset.surface));
      level.addEventListener("keydown", (e) => {
        const by = {ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1}[e.key];
        if (!by && e.key !== "Enter" && e.key !== " ") return;
        e.preventDefault();
        const done = by ? step(by) : show(level.dataset.surface);
        document.querySelector('.level[aria-checked="true"]')?.focus();
        return done;
      });
    });
    all("[data-mode]").forEach((row) => row.addEventListener("click", () => show("none", Number(row.dataset.mode))));
  }

  function connectViewer() {
    const on = (id, event, act) => element(id)?.addEventListener(event, act);
    on("isovalue", "input", (e) => {
      const [low, high] = range();
      state.isovalue[surfaces.get(state.surface).kind] = low * Math.pow(high / low, Number(e.target.value) / 100);
      drawShapes();
    });
    on("opacity", "input", (e) => { state.opacity = Number(e.target.value) / 100; drawShapes(); });
    on("texture", "change", (e) => { state.texture = e.target.value; drawShapes(); });
    on("labels", "change", (e) => { state.labels = e.target.value; drawLabels(); viewer.render(); });
    on("bond-orders", "change", (e) => { state.bondOrders = e.target.checked; drawLabels(); viewer.render(); });
    on("dipole", "change", (e) => { state.dipole = e.target.checked; drawLegend(); drawShapes(); });
    on("style", "change", (e) => { state.style = e.target.value; drawModel(); viewer.render(); });
    on("turn", "change", (e) => viewer.spin(e.target.checked ? "y" : false, 0.6));
    on("reset", "click", resetView);
    on("save", "click", () => {
      const link = document.createElement("a");
      Object.assign(link, {href: viewer.pngURI(), download: data.file + ".png"});
      link.click();
    });
    const stage = element("viewer");
    stage.addEventListener("keydown", (e) => {
      const act = {
        ArrowLeft: () => viewer.rotate(-8, "y"), ArrowRight: () => viewer.rotate(8, "y"),
        ArrowUp: () => viewer.rotate(-8, "x"), ArrowDown: () => viewer.rotate(8, "x"),
        "+": () => viewer.zoom(1.15), "=": () => viewer.zoom(1.15), "-": () => viewer.zoom(1 / 1.15), 0: resetView,
      }[e.key];
      if (!act || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      act();
      viewer.render();
    });
    // the wheel scrolls the page until the molecule was clicked on
    stage.addEventListener("pointerdown", () => stage.focus({preventScroll: true}));
    stage.addEventListener("wheel", (e) => { if (document.activeElement !== stage) e.stopPropagation(); }, {capture: true});
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      viewer.setBackgroundColor(color("stage"));
      drawLabels();
      drawShapes();
    });
    window.addEventListener("beforeprint", () => {
      element("snapshot").src = viewer.pngURI();
      document.body.classList.add("printing");
    });
    window.addEventListener("afterprint", () => document.body.classList.remove("printing"));
  }

  async function start() {
    connect();
    for (const box of all(".scroll")) { // the keyboard stops only where there is something to scroll
      if (box.scrollHeight <= box.clientHeight && box.scrollWidth <= box.clientWidth) box.removeAttribute("tabindex");
    }
    try {
      if (typeof DecompressionStream === "undefined") throw new Error("too old");
      const probe = document.createElement("canvas");
      if (!probe.getContext("webgl2") && !probe.getContext("webgl")) throw new Error("no WebGL");
      viewer = $3Dmol.createViewer(element("viewer"), {backgroundColor: color("stage"), antialias: true});
    } catch (error) {
      element("viewer-status").textContent =
        "This browser cannot draw in three dimensions (it needs WebGL and DecompressionStream). All numbers are in the tables.";
    }
    if (viewer) {
      viewer.getCanvas().setAttribute("tabindex", "-1");
      drawModel();
      viewer.zoomTo();
      resetView();
      connectViewer();
    }
    await show(state.surface);
    document.body.dataset.ready = viewer ? "drawn" : "tables";
  }

  // exposed for tests and for the curious: the state, and choosing by hand
  const field = (key) => values(volumeOf(surfaces.get(key)));
  const view = () => viewer.getView(), picture = () => viewer.pngURI();
  window.mlsemiReport = {state, show, field, resetView, view, picture};
  start();
})();
