// Before anything is drawn, so that no page flashes in the other theme.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => localStorage.getItem("theme") || "system";
  const apply = () => {
    const theme = wanted() === "system" ? (system.matches ? "dark" : "light") : wanted();
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${wanted()}`;
    dispatchEvent(new CustomEvent("theme", { detail: theme }));
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      const order = ["system", "light", "dark"];
      localStorage.setItem("theme", order[(order.indexOf(wanted()) + 1) % 3]);
      apply();
    });
  });
})();
