for (const slider of document.querySelectorAll(".slider")) {
  const layers = [...slider.querySelectorAll("img")].slice(1);
  const show = (value) => layers.forEach((layer, i) => {
    const share = Math.min(1, Math.max(0, value - i));
    layer.style.clipPath = `inset(0 ${100 * (1 - share)}% 0 0)`;
  });
  const range = slider.querySelector("input");
  range.addEventListener("input", () => show(Number(range.value)));
  show(Number(range.value));
}
