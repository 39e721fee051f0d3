// The volumes of the page: bytes from the JSON block to images that NiiVue shows.
"use strict";

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

async function unzipped(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Volumes {
  constructor(data) {
    this.entries = data.volumes;
    this.kinds = data.kinds;
    this.pending = new Map();
  }

  kind(name) {
    return this.kinds[this.entries[name].kind];
  }

  // The levels of a volume, the first axis fastest. Most are stored as the difference, modulo
  // 256, to one that they resemble.
  levels(name) {
    if (!this.pending.has(name)) this.pending.set(name, this.decode(name));
    return this.pending.get(name);
  }

  async decode(name) {
    const { gzip, like } = this.entries[name];
    const levels = await unzipped(bytesOf(gzip));
    if (like) {
      const base = await this.levels(like);
      for (let i = 0; i < levels.length; i++) levels[i] += base[i];
    }
    return levels;
  }

  // A NIfTI file made of the header and the levels, as NiiVue reads it.
  async image(name, look) {
    const header = bytesOf(this.kind(name).header);
    const levels = await this.levels(name);
    const file = new Uint8Array(header.length + levels.length);
    file.set(header);
    file.set(levels, header.length);
    return niivue.NVImage.loadFromUrl({ url: file.buffer, name: `${name}.nii`, ...look });
  }
}
