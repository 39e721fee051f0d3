// Outlines of tumours, drawn over a NiiVue canvas as lines: sharper than any overlay of voxels.
"use strict";

// Voxel axes across, up and through each kind of slice, by NiiVue's number of it.
const SLICE_AXES = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 2, 0],
];

// Segments [x0, y0, x1, y1] in voxels where the values of a slice cross the level: marching
// squares, with values between voxel centres interpolated linearly.
function crossings(valueAt, across, up, level) {
  const segments = [];
  for (let j = 0; j + 1 < up; j++) {
    for (let i = 0; i + 1 < across; i++) {
      const corners = [
        [i, j],
        [i + 1, j],
        [i + 1, j + 1],
        [i, j + 1],
      ];
      const values = corners.map(([x, y]) => valueAt(x, y) - level);
      const points = [];
      for (let k = 0; k < 4; k++) {
        const a = values[k];
        const b = values[(k + 1) % 4];
        if (a >= 0 === b >= 0) continue;
        const [ax, ay] = corners[k];
        const [bx, by] = corners[(k + 1) % 4];
        const share = a / (a - b);
        points.push([ax + share * (bx - ax), ay + share * (by - ay)]);
      }
      for (let k = 0; k + 1 < points.length; k += 2) {
        segments.push([...points[k], ...points[k + 1]]);
      }
    }
  }
  return segments;
}

// Draws the outline of `levels`, an array of `shape` whose edge is at `level`, on every slice
// that NiiVue shows at present.
function drawOutline(context, nv, { levels, shape, level }, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  const low = nv.frac2mm([0, 0, 0]);
  const high = nv.frac2mm([1, 1, 1]);
  const stride = [1, shape[0], shape[0] * shape[1]];
  for (const tile of nv.screenSlices) {
    const axes = SLICE_AXES[tile.axCorSag];
    if (!axes) continue;
    const [u, v, w] = axes;
    const at = Math.min(shape[w] - 1, Math.floor(nv.scene.crosshairPos[w] * shape[w]));
    const valueAt = (i, j) => levels[i * stride[u] + j * stride[v] + at * stride[w]];
    const place = (axis, index, side) => {
      const mm = low[axis] + ((index + 0.5) / shape[axis]) * (high[axis] - low[axis]);
      return (mm - tile.leftTopMM[side]) / tile.fovMM[side];
    };
    // A negative width is NiiVue's way of saying that the slice is mirrored.
    const [left, top, across, down] = tile.leftTopWidthHeight;
    const x = (index) => left + place(u, index, 0) * across;
    const y = (index) => top + (1 - place(v, index, 1)) * down;
    context.beginPath();
    for (const [x0, y0, x1, y1] of crossings(valueAt, shape[u], shape[v], level)) {
      context.moveTo(x(x0), y(y0));
      context.lineTo(x(x1), y(y1));
    }
    context.stroke();
  }
}
