// Every picture of a row shows what is like the patch that is clicked in one of them. Without this script the first
// patch stays.
function show(heat, x, y) {
  const [height, width, right, down] = heat.dataset.grid.split(" ").map(Number);
  const near = (place, count, shift) => Math.min(count - 1, Math.max(0, Math.floor(place * count + shift)));
  const cell = (x, y) => near(y, height, down) * width + near(x, width, right);
  heat.cosines ??= Uint8Array.from(atob(heat.dataset.cosines), (letter) => letter.charCodeAt(0));
  const from = cell(x, y) * height * width;
  const ramp = heat.closest(".patches").dataset.ramp.match(/../g).map((part) => parseInt(part, 16));
  const canvas = document.createElement("canvas");
  const side = (canvas.width = canvas.height = 168);
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  for (let k = 0; k < side * side; k++) {
    const share = heat.cosines[from + cell(((k % side) + 0.5) / side, (Math.floor(k / side) + 0.5) / side)] / 255;
    const stop = Math.min(3, Math.floor(4 * share));
    for (let c = 0; c < 3; c++) {
      const [low, high] = [ramp[3 * stop + c], ramp[3 * stop + 3 + c]];
      image.data[4 * k + c] = low + (high - low) * (4 * share - stop);
    }
    image.data[4 * k + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  heat.src = canvas.toDataURL();
}
for (const row of document.querySelectorAll(".patches")) {
  row.addEventListener("click", (event) => {
    const stack = event.target.closest(".stack");
    if (!stack) return;
    const box = stack.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    for (const dot of row.querySelectorAll(".dot")) dot.style.cssText = `left:${100 * x}%;top:${100 * y}%`;
    for (const heat of row.querySelectorAll("[data-cosines]")) show(heat, x, y);
  });
}
