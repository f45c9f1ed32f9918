// Figures that the service drew, and two that are drawn here; all in the colours of the theme.

// Light colours, in which figures come, and those that stand for them on dark paper; as in search/figures.py.
let dark = {};
const drawn = new Map();

export function setColours(colours) {
  dark = colours;
}

function themed(text) {
  if (document.documentElement.dataset.theme !== "dark") return text;
  return text.replace(/"(#[0-9a-f]{6})"/g, (all, colour) => `"${dark[colour] || colour}"`);
}

async function plotly() {
  while (!globalThis.Plotly) await new Promise((done) => setTimeout(done, 20));
  return globalThis.Plotly;
}

// Draw a figure, Plotly's JSON as a string, again whenever the theme changes.
export async function draw(place, text, height, summary, clicked) {
  const Plotly = await plotly();
  let plot = place.querySelector(".plot");
  if (!plot) {
    plot = document.createElement("div");
    plot.className = "plot";
    plot.setAttribute("role", "img");
    place.prepend(plot);
  }
  plot.style.height = `${height}px`;
  plot.setAttribute("aria-label", summary);
  const figure = JSON.parse(themed(text));
  figure.layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  await Plotly.react(plot, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
  if (clicked && !drawn.has(place)) plot.on("plotly_click", (event) => clicked(event.points[0]));
  drawn.set(place, () => draw(place, text, height, summary, clicked));
}

addEventListener("theme", () => drawn.forEach((again) => again()));

const INK = "#1b1f24", MUTED = "#59616b", GRID = "#e1e4e8", PAPER = "#ffffff", BLUE = "#0072b2", ORANGE = "#e69f00";

function layout(height, title, extra) {
  const axis = { gridcolor: GRID, linecolor: MUTED, showline: true, zeroline: false, automargin: true };
  return {
    height, paper_bgcolor: PAPER, plot_bgcolor: PAPER, font: { color: INK, size: 13, family: "system-ui, sans-serif" },
    margin: { l: 8, r: 12, t: 28, b: 8 }, hovermode: "closest", barmode: "group", bargap: 0.25,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, xaxis: { ...axis, title: { text: "layer" } },
    yaxis: { ...axis, title: { text: title } }, ...extra,
  };
}

// What two architectures keep of each layer, attention above and MLP below.
export function drawMap(place, a, b, dense, names) {
  const share = (genes, gene) => genes.map((layer, i) => layer[gene] / dense[i][gene]);
  const bars = (genes, gene, name, colour, axis) => ({
    type: "bar", x: genes.map((_, i) => i), y: share(genes, gene), name, legendgroup: name, showlegend: axis === "y",
    marker: { color: colour }, yaxis: axis, hovertemplate: "layer %{x}: %{y:.0%}",
  });
  const data = [
    bars(a, 0, names[0], BLUE, "y"), bars(b, 0, names[1], ORANGE, "y"), bars(a, 2, names[0], BLUE, "y2"), bars(b, 2, names[1], ORANGE, "y2"),
  ];
  const own = layout(420, "attention kept", {});
  own.xaxis = { ...own.xaxis, anchor: "y2" };
  own.yaxis = { ...own.yaxis, domain: [0.55, 1], range: [0, 1.02], tickformat: ".0%" };
  own.yaxis2 = { ...own.yaxis, domain: [0, 0.45], title: { text: "MLP kept" } };
  const mean = (genes, gene) => `${Math.round((100 * share(genes, gene).reduce((x, y) => x + y, 0)) / genes.length)} %`;
  const summary = `${names[0]} keeps ${mean(a, 0)} of attention and ${mean(a, 2)} of MLP widths, ${names[1]} ${mean(b, 0)} and ${mean(b, 2)}.`;
  return draw(place, JSON.stringify({ data, layout: own }), 420, summary);
}

// What each layer's attention and MLP add to what an architecture loses.
export function drawDamages(place, damages, loss) {
  const bars = (part, name, colour) => ({
    type: "bar", x: damages.map((_, i) => i), y: damages.map((layer) => layer[part]), name, marker: { color: colour },
    hovertemplate: "layer %{x}: %{y:.4f}",
  });
  const data = [bars(0, "attention", BLUE), bars(1, "MLP", ORANGE)];
  const worst = damages.map((layer, i) => [layer[0] + layer[1], i]).sort((x, y) => y[0] - x[0])[0];
  const summary = `Predicted ${loss} by layer: layer ${worst[1]} costs most, ${worst[0].toFixed(3)}.`;
  return draw(place, JSON.stringify({ data, layout: layout(360, loss, { barmode: "stack" }) }), 360, summary);
}
