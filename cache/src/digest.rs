//! BLAKE3-256 digests of bytes, files and trees: the only use of BLAKE3 in the workspace.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use blake3::hazmat::{self, HasherExt};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod mapped;
pub(crate) use mapped::is_being_written;

/// What is read at a time: a power of two, so that a piece is a subtree of BLAKE3's, and small enough to be in the cache
/// still when it is hashed.
const PIECE: usize = 256 << 10;
/// From here on all cores read and hash pieces side by side.
const LARGE: u64 = 8 << 20;
/// From here on a file is mapped, where that is safe.
const VERY_LARGE: u64 = 128 << 20;

/// How many of `count` subtrees are on the left: the largest power of two that leaves something on the right.
fn left_of(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn merged(values: &[hazmat::ChainingValue]) -> hazmat::ChainingValue {
    if let [one] = values {
        return *one;
    }
    let (left, right) = values.split_at(left_of(values.len()));
    hazmat::merge_subtrees_non_root(&merged(left), &merged(right), hazmat::Mode::Hash)
}

/// What no hex digit stands for.
const NO_NIBBLE: u8 = 0x80;
/// The value of each hex digit. One spelling each: a digest in capitals would be a second name for the same content.
const NIBBLES: [u8; 256] = {
    let mut values = [NO_NIBBLE; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0;
    while value < 16 {
        values[digits[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// The BLAKE3-256 digest of some content, shown as hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Digest of pieces, as if they were one.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Self::of_hasher(&hasher)
    }

    /// Digest of what a hasher was given.
    pub(crate) fn of_hasher(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }

    /// Digest of a file's content and its length in bytes.
    ///
    /// # Errors
    /// Whatever opening or reading the file gives.
    pub fn of_file(path: &Path) -> io::Result<(Self, u64)> {
        Self::of_open(&mut File::open(path)?)
    }

    /// The same of a file that was opened for reading and is at its beginning.
    pub(crate) fn of_open(file: &mut File) -> io::Result<(Self, u64)> {
        let expected = file.metadata()?.len();
        if expected >= LARGE
            && let Some(digest) = Self::of_large(file, expected)?
        {
            return Ok((digest, expected));
        }
        let mut hasher = blake3::Hasher::new();
        let mut piece = Vec::with_capacity((expected as usize).min(PIECE) + 1);
        let mut length = 0;
        loop {
            piece.clear();
            let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
            length += read as u64;
            hasher.update(&piece);
            if read < PIECE {
                return Ok((Self::of_hasher(&hasher), length));
            }
        }
    }

    /// The same of a large file: its pieces, which are subtrees of the hash, side by side. `None` for a file that was cut short
    /// meanwhile.
    fn of_large(file: &File, length: u64) -> io::Result<Option<Self>> {
        let mapped = if length >= VERY_LARGE { mapped::Mapped::new(file, length) } else { None };
        let one = |buffer: &mut Vec<u8>, index: usize| {
            let start = index as u64 * PIECE as u64;
            let size = (length - start).min(PIECE as u64) as usize;
            let hash = |bytes: &[u8]| {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(start).update(bytes).finalize_non_root()
            };
            if let Some(value) = mapped.as_ref().and_then(|mapped| mapped.piece(start, size, hash)) {
                return Ok(Some(value));
            }
            buffer.resize(size, 0);
            match file.read_exact_at(buffer, start) {
                Ok(()) => Ok(Some(hash(buffer))),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(e) => Err(e),
            }
        };
        let pieces = (0..length.div_ceil(PIECE as u64) as usize).into_par_iter().with_min_len(8);
        let values = pieces.map_init(Vec::new, one).collect::<io::Result<Option<Vec<_>>>>()?;
        Ok(values.map(|values| {
            let (left, right) = values.split_at(left_of(values.len()));
            Self(*hazmat::merge_subtrees_root(&merged(left), &merged(right), hazmat::Mode::Hash).as_bytes())
        }))
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first twelve hex digits, enough to name an object to a person.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (index, byte) in self.0.iter().enumerate() {
            text[2 * index] = DIGITS[usize::from(byte >> 4)];
            text[2 * index + 1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).expect("hex digits are text"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

/// A text that is not 64 hex digits.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a digest: expected 64 lower-case hex digits")]
pub struct BadDigest(String);

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        let bad = || BadDigest(text.to_owned());
        if text.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        let mut wrong = 0;
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
            wrong |= (high | low) & NO_NIBBLE;
            *byte = high << 4 | low & 15;
        }
        if wrong == 0 { Ok(Self(bytes)) } else { Err(bad()) }
    }
}

/// As hex digits where people read, as bytes elsewhere.
impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl serde::de::Visitor<'_> for Either {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("64 hex digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Digest, E> {
                bytes.try_into().map(Digest).map_err(E::custom)
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Either)
        } else {
            deserializer.deserialize_bytes(Either)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_bytes_at_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let pattern: Vec<u8> = (0..251).collect();
        let large = LARGE as usize;
        for length in [
            0,
            1,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            large - 1,
            large,
            large + 1,
            large + 5 * PIECE,
            3 * large + 7,
            VERY_LARGE as usize + PIECE + 3,
        ] {
            let bytes: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(Digest::of_file(&path).unwrap(), (Digest::of_bytes(&bytes), length as u64), "{length} bytes");
        }
    }

    /// While a very large file is hashed, somebody who wants to cut it short is neither kept waiting for long nor able to end this
    /// process.
    #[test]
    fn a_mapped_file_may_be_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 3 * PIECE]).unwrap();
        let file = File::open(&path).unwrap();
        let Some(mapped) = mapped::Mapped::new(&file, 3 * PIECE as u64) else {
            // This file system gives no leases: files are read, and the digest is the same.
            assert_eq!(Digest::of_file(&path).unwrap().0, Digest::of_bytes(&vec![7; 3 * PIECE]));
            return;
        };
        assert_eq!(mapped.piece(PIECE as u64, 5, <[u8]>::to_vec), Some(vec![7; 5]));
        let cutter = std::thread::spawn(move || File::options().write(true).open(&path).unwrap().set_len(10).unwrap());
        while mapped.piece(0, 5, |bytes| assert_eq!(bytes, [7; 5])).is_some() {
            std::thread::yield_now();
        }
        // Given back with the last piece, though the mapping is still there.
        cutter.join().unwrap();
        assert_eq!(mapped.piece(0, 5, <[u8]>::to_vec), None);
        assert_eq!(file.metadata().unwrap().len(), 10);
    }
}
