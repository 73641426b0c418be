//! The index: headings and hits of many journals in one file, so that planning reads one file instead of thousands of lines.
//!
//! ```text
//! siteline-index 1        a line
//! length of the head      eight bytes
//! head                    postcard: the journals that are covered, and up to where; the entries
//! hits                    postcard, one after the other
//! BLAKE3 of all that      32 bytes
//! ```
//!
//! It is a copy. It is used only if its digest holds and every journal that it covers is still there and no shorter; otherwise the
//! journals are read.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::record::Heading;
use crate::{Digest, Hit, Output, Result, StoreError};

pub(super) const NAME: &str = "index";
const FORMAT: &[u8] = b"siteline-index 1\n";
/// So many records that the index lacks are worth another one.
pub(super) const WORTH: usize = 256;

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) covered: Vec<Covered>,
    pub(super) entries: Vec<Indexed>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Covered {
    pub(super) name: String,
    pub(super) length: u64,
    /// Whether the journal has more by now.
    #[serde(skip)]
    pub(super) grew: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Indexed {
    pub(super) heading: Heading,
    pub(super) segment: u32,
    pub(super) offset: u64,
    /// Start and end of its hit.
    pub(super) line: (u32, u32),
}

/// The hits of an index, one after the other.
#[derive(Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    start: usize,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    instance: &'a str,
    run: &'a str,
    outputs: Vec<Output>,
}

impl Lines {
    pub(super) fn hit(&self, key: Digest, (from, to): (u32, u32)) -> Option<Hit> {
        let bytes = self.bytes.get(self.start..)?.get(from as usize..to as usize)?;
        let line: Line = postcard::from_bytes(bytes).ok()?;
        Some(Hit { key, instance: line.instance.to_owned(), run: line.run.to_owned(), outputs: line.outputs })
    }
}

/// The index of a folder's journals, if it holds.
pub(super) fn read(folder: &Path) -> Option<(Index, Lines)> {
    let bytes = fs::read(folder.join(NAME)).ok()?;
    let (content, digest) = bytes.split_last_chunk::<32>()?;
    if Digest::of_bytes(content).as_bytes() != digest {
        return None;
    }
    let (length, rest) = content.strip_prefix(FORMAT)?.split_first_chunk::<8>()?;
    let head = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let mut index: Index = postcard::from_bytes(rest.get(..head)?).ok()?;
    for covered in &mut index.covered {
        let there = fs::metadata(folder.join(&covered.name)).ok()?.len();
        if there < covered.length {
            return None;
        }
        covered.grew = there > covered.length;
    }
    let start = FORMAT.len() + 8 + head;
    Some((index, Lines { bytes, start }))
}

/// Takes the index away, where there is one.
pub(super) fn remove(folder: &Path) -> Result<()> {
    let path = folder.join(NAME);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(e)),
        _ => Ok(()),
    }
}

/// An index that is being made.
#[derive(Default)]
pub(super) struct Building {
    index: Index,
    lines: Vec<u8>,
}

impl Building {
    /// Says up to where a journal is covered. Returns its place.
    pub(super) fn cover(&mut self, name: &str, length: u64) -> u32 {
        self.index.covered.push(Covered { name: name.to_owned(), length, grew: false });
        self.index.covered.len() as u32 - 1
    }

    pub(super) fn add(&mut self, heading: Heading, segment: u32, offset: u64, hit: &Hit) {
        let from = self.lines.len() as u32;
        let line = Line { instance: &hit.instance, run: &hit.run, outputs: hit.outputs.clone() };
        self.lines.extend(postcard::to_allocvec(&line).expect("a hit can be written"));
        self.index.entries.push(Indexed { heading, segment, offset, line: (from, self.lines.len() as u32) });
    }

    pub(super) fn write(&self, folder: &Path, tmp: &Path) -> Result<()> {
        let head = postcard::to_allocvec(&self.index).expect("an index can be written");
        let mut bytes = FORMAT.to_vec();
        bytes.extend((head.len() as u64).to_le_bytes());
        bytes.extend(head);
        bytes.extend(&self.lines);
        let digest = Digest::of_bytes(&bytes);
        bytes.extend(digest.as_bytes());
        crate::object::write_whole(tmp, &folder.join(NAME), &bytes)
    }
}
