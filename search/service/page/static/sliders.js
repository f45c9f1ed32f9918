import { element } from "./common.js";

const PARTS = ["attention", "MLP"], WORDS = ["KV groups", "MLP width"];

// One vertical slider for each sub-block: its places are the choices of the search space, from cheapest to dense.
export class Sliders {
  constructor(told, places, moved) {
    this.columns = told.columns;
    this.whole = told.whole_blocks;
    this.moved = moved;
    this.start = null;
    this.sliders = told.columns.map((choices, column) => this.#slider(choices, column, places[column % 2]));
    this.dense = this.#genes(told.columns.map((choices) => choices.length - 1));
  }

  // Stand where an architecture says; return whether all of its widths are choices.
  begin(architecture) {
    const found = this.#indices(architecture);
    this.start = found.indices;
    found.indices.forEach((index, column) => this.#put(column, index));
    this.moved();
    return found.exact;
  }

  get genes() {
    return this.#genes(this.sliders.map(({ input }) => Number(input.value)));
  }

  get architecture() {
    return {
      layers: this.genes.map(([kv_groups, attention_sparsity, mlp_width, mlp_sparsity]) => ({ kv_groups, mlp_width, attention_sparsity, mlp_sparsity })),
    };
  }

  genesOf(architecture) {
    return architecture.layers.map((layer) => [layer.kv_groups, layer.attention_sparsity, layer.mlp_width, layer.mlp_sparsity]);
  }

  #genes(indices) {
    const chosen = indices.map((index, column) => this.columns[column][index]);
    return Array.from({ length: chosen.length / 2 }, (_, layer) => [...chosen[2 * layer], ...chosen[2 * layer + 1]]);
  }

  #indices(architecture) {
    let exact = true;
    const indices = this.genesOf(architecture).flatMap((genes, layer) => [0, 1].map((part) => {
      const [width, sparsity] = genes.slice(2 * part, 2 * part + 2), choices = this.columns[2 * layer + part];
      const distance = (choice) => Math.abs(choice[0] - width) + (choice[0] ? Math.abs(choice[1] - sparsity) : 0);
      const nearest = choices.reduce((best, choice, i) => (distance(choice) < distance(choices[best]) ? i : best), 0);
      exact &&= distance(choices[nearest]) < 1e-9;
      return nearest;
    }));
    return { indices, exact };
  }

  #slider(choices, column, place) {
    const layer = column >> 1, part = column % 2;
    const input = element("input", { type: "range", min: 0, max: choices.length - 1, step: 1 });
    input.setAttribute("aria-label", `Layer ${layer}, ${WORDS[part]}`);
    input.setAttribute("orient", "vertical");
    input.title = `layer ${layer}, ${PARTS[part]}`;
    const output = element("output", {}), box = element("div", { className: "slider" }, input, output, element("b", {}, `L${layer}`));
    input.addEventListener("input", () => {
      this.#put(column, Number(input.value));
      if (this.whole) this.#put(column ^ 1, Number(input.value));
      this.moved();
    });
    place.append(box);
    return { input, output, box };
  }

  #put(column, index) {
    const { input, output, box } = this.sliders[column], choices = this.columns[column];
    const [width, sparsity] = choices[index], most = choices.at(-1)[0];
    input.value = index;
    output.textContent = sparsity ? `${width} ${Math.round(100 * sparsity)}%` : `${width}`;
    const zeros = sparsity ? `, ${Math.round(100 * sparsity)} percent zeros` : "";
    input.setAttribute("aria-valuetext", width ? `${width} of ${most}${zeros}` : "removed");
    box.classList.toggle("removed", !width);
    box.classList.toggle("changed", this.start !== null && this.start[column] !== index);
  }
}
