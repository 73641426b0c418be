//! Prints the digests of files as Siteline hashes them, side by side: for `benches/hash`.

use std::path::PathBuf;

use rayon::prelude::*;
use siteline_cache::Digest;

fn main() {
    // Names by argument or, one a line, by standard input.
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        paths = std::io::stdin().lines().map_while(Result::ok).map(PathBuf::from).collect();
    }
    let digests: Vec<_> = paths.par_iter().map(|path| Digest::of_file(path)).collect();
    for (path, digest) in paths.iter().zip(digests) {
        match digest {
            Ok((digest, _)) => println!("{digest}  {}", path.display()),
            Err(e) => eprintln!("{}: {e}", path.display()),
        }
    }
}
