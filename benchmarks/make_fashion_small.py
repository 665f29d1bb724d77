"""Make blf_explore/engine/fashion_small.xz anew: `python benchmarks/make_fashion_small.py FOLDER`, a folder with Fashion-MNIST's four IDX files.

The bytes in it are the same whoever makes it; so is the file, with the same version of liblzma. Prints what engine.small has to know."""
import argparse, hashlib, lzma
from pathlib import Path
from blf_explore.engine.data import read_fashion_idx
from blf_explore.engine.small import pack_fashion

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('folder', type=Path, help="the four IDX files, gzipped or not")
    p.add_argument('--out', type=Path, default=Path(__file__).resolve().parent.parent/'blf_explore'/'engine'/'fashion_small.xz')
    args = p.parse_args()
    d = pack_fashion(*read_fashion_idx(args.folder))
    args.out.write_bytes(d)
    print(f'{args.out.name}: {len(d)} bytes; before compression sha256 {hashlib.sha256(lzma.decompress(d)).hexdigest()}')

if __name__=='__main__': main()
