//! Journals: the records of a store, appended in groups, one journal for each run that executed something.
//!
//! ```text
//! records/RUN.records    frames, see `record`; only the run that made the file ever writes to it
//! records/index          what planning needs of them, in one piece: a copy, used only while it holds
//! ```
//!
//! A journal is read by its headings; a body is read, and its digest checked, when its key is looked up. Bytes that are no
//! frame (the torn end of a killed run, damage) are passed over up to the next heading.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FlockOperation, flock};

use crate::record::{DIFFERS, HEADING, Heading};
use crate::{Digest, Hit, Record, Result, StoreError};

mod index;
mod writer;

use index::{Index, Lines};
pub(crate) use writer::{Writer, rewrite};

/// What journals end in.
const ENDING: &str = "records";
/// What is read at once when looking for headings.
const READ_AHEAD: usize = 4 << 10;
/// The longest heading: the word, three digests, two numbers.
const LONGEST_HEADING: usize = 320;

/// Keys are digests already: any eight bytes of them will do.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

/// Where a record lies.
#[derive(Clone, Copy)]
struct Entry {
    heading: Heading,
    segment: u32,
    /// Of the body.
    offset: u64,
    /// Where its hit lies in the index.
    line: Option<(u32, u32)>,
    /// The entry before this one under the same key.
    earlier: Option<u32>,
}

/// One journal file.
struct Segment {
    name: String,
    /// Opened when it is first read.
    file: OnceLock<File>,
    /// Up to where it was read.
    read_to: u64,
    /// Whether its writer may still append to it.
    live: bool,
}

/// Every record of a store, by key.
#[derive(Default)]
pub(crate) struct Journal {
    folder: PathBuf,
    entries: Vec<Entry>,
    latest: HashMap<Digest, u32, BuildHasherDefault<KeyHasher>>,
    segments: Vec<Segment>,
    /// The folder's time at the last look, and the time of that look.
    listed: Option<(i64, std::time::SystemTime)>,
    /// What this process appends to.
    own: Option<String>,
    /// The hits of the index.
    lines: Arc<Lines>,
    /// How many entries the index has.
    indexed: usize,
}

impl Segment {
    fn file(&self, folder: &Path) -> std::io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::open(folder.join(&self.name))?;
        Ok(self.file.get_or_init(|| file))
    }
}

impl Journal {
    /// Takes in the index, where it holds, and the headings of what it lacks. `folder` need not exist.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut journal = Self { folder: folder.to_owned(), ..Self::default() };
        if let Some((index, lines)) = index::read(folder) {
            journal.take_in(index, lines);
        }
        journal.refresh()?;
        Ok(journal)
    }

    /// Reads the headings of every journal in `folder`, whatever the index says.
    pub(crate) fn scan(folder: &Path) -> Result<Self> {
        let mut journal = Self { folder: folder.to_owned(), ..Self::default() };
        journal.refresh()?;
        Ok(journal)
    }

    /// Takes the index away and reads the journals instead.
    pub(crate) fn forget_index(&mut self) -> Result<()> {
        index::remove(&self.folder)?;
        let own = self.own.take();
        *self = Self::scan(&self.folder)?;
        self.own = own;
        Ok(())
    }

    fn take_in(&mut self, index: Index, lines: Lines) {
        for covered in index.covered {
            let file = OnceLock::new();
            self.segments.push(Segment { name: covered.name, file, read_to: covered.length, live: covered.grew });
        }
        self.latest.reserve(index.entries.len());
        self.entries.reserve(index.entries.len());
        for entry in index.entries {
            self.add(entry.heading, entry.segment, entry.offset, Some(entry.line));
        }
        (self.lines, self.indexed) = (Arc::new(lines), self.entries.len());
    }

    /// Writes the index anew if much has come since. What a writer still adds to is left out.
    pub(crate) fn index(&mut self, tmp: &Path) -> Result<()> {
        if self.entries.len() - self.indexed < index::WORTH.max(self.indexed / 16) {
            return Ok(());
        }
        self.write_index(tmp)
    }

    fn write_index(&mut self, tmp: &Path) -> Result<()> {
        let settled = |segment: &Segment| !segment.live || self.own.as_ref() == Some(&segment.name);
        let mut places = vec![None; self.segments.len()];
        let mut fresh = index::Building::default();
        for (place, segment) in self.segments.iter().enumerate().filter(|(_, segment)| settled(segment)) {
            places[place] = Some(fresh.cover(&segment.name, segment.read_to));
        }
        for entry in &self.entries {
            // A hit that does not hold has no place in the index: `verify` finds it in its journal.
            if let (Some(segment), Some(hit)) = (places[entry.segment as usize], self.hit_at(entry)) {
                fresh.add(entry.heading, segment, entry.offset, &hit);
            }
        }
        fresh.write(&self.folder, tmp)?;
        self.indexed = self.entries.len();
        Ok(())
    }

    /// Takes in what other processes have appended since.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        let Ok(meta) = fs::metadata(&self.folder) else { return Ok(()) };
        let changed = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        let now = std::time::SystemTime::now();
        // A folder's time moves in steps of the kernel's clock: shortly after a change it says nothing.
        let settled = |look: std::time::SystemTime| {
            let look = look.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
            look - changed > 100_000_000
        };
        if !self.listed.is_some_and(|(known, look)| known == changed && settled(look)) {
            self.list()?;
            self.listed = Some((changed, now));
        }
        for index in 0..self.segments.len() {
            if self.segments[index].live && self.own.as_ref() != Some(&self.segments[index].name) {
                self.read_on(index)?;
            }
        }
        Ok(())
    }

    /// Finds journals that are not known yet.
    fn list(&mut self) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(StoreError::io("read", &self.folder))? {
            let entry = entry.map_err(StoreError::io("read", &self.folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if Path::new(&name).extension().is_some_and(|e| e == ENDING) {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            if self.segments.iter().any(|segment| segment.name == name) {
                continue;
            }
            let path = self.folder.join(&name);
            match File::open(&path) {
                Ok(file) => self.segments.push(Segment { name, file: file.into(), read_to: 0, live: true }),
                // `gc` may have taken it away meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(StoreError::io("read", &path)(e)),
            }
        }
        Ok(())
    }

    /// Reads a journal's headings from where the last reading ended.
    fn read_on(&mut self, index: usize) -> Result<()> {
        let path = self.folder.join(&self.segments[index].name);
        let io = || StoreError::io("read", &path);
        // Asked before reading: what a writer appends before it lets go is read below.
        let file = self.segments[index].file(&self.folder).map_err(io())?;
        let sealed = flock(file, FlockOperation::NonBlockingLockShared).is_ok();
        let result = self.read_frames(index);
        if sealed {
            let file = self.segments[index].file(&self.folder).map_err(io())?;
            let _ = flock(file, FlockOperation::Unlock);
            self.segments[index].live = false;
        }
        result.map_err(io())
    }

    fn read_frames(&mut self, index: usize) -> std::io::Result<()> {
        let segment = &self.segments[index];
        let file = segment.file(&self.folder)?;
        let length = file.metadata()?.len();
        if length <= segment.read_to {
            return Ok(());
        }
        // Small records are read through, large ones are passed over.
        let mut reader = BufReader::with_capacity(READ_AHEAD, At { file, offset: segment.read_to });
        let mut place = segment.read_to;
        let mut read_to = place;
        let mut line = Vec::new();
        let mut found = Vec::new();
        loop {
            line.clear();
            let read = std::io::Read::take(&mut reader, LONGEST_HEADING as u64).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            place += read as u64;
            let heading = line.strip_suffix(b"\n").and_then(|line| Heading::parse(start_of_heading(line)));
            let Some((heading, used)) = heading else { continue };
            if place + u64::from(heading.body) > length {
                // The rest is not there (yet), or the length is damaged: what follows is looked through line by line.
                continue;
            }
            if self_delimits(&mut reader, file, place, &heading)? {
                if used {
                    found.push((heading, place));
                }
                place += u64::from(heading.body);
                read_to = place;
            }
        }
        self.segments[index].read_to = read_to;
        for (heading, offset) in found {
            self.add(heading, index as u32, offset, None);
        }
        Ok(())
    }

    fn add(&mut self, heading: Heading, segment: u32, offset: u64, line: Option<(u32, u32)>) {
        let place = self.entries.len() as u32;
        let earlier = self.latest.insert(heading.key, place);
        self.entries.push(Entry { heading, segment, offset, line, earlier });
    }

    /// Entries of a key, the latest first.
    fn entries_of(&self, key: &Digest) -> impl Iterator<Item = &Entry> {
        let mut next = self.latest.get(key).copied();
        std::iter::from_fn(move || {
            let entry = &self.entries[next? as usize];
            next = entry.earlier;
            Some(entry)
        })
    }

    /// The first `length` bytes behind a heading.
    fn bytes(&self, entry: &Entry, length: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        let file = self.segments[entry.segment as usize].file(&self.folder).ok()?;
        file.read_exact_at(&mut bytes, entry.offset).ok()?;
        Some(bytes)
    }

    fn record_at(&self, entry: &Entry) -> Option<Record> {
        entry.heading.record_in(&self.bytes(entry, entry.heading.body)?)
    }

    fn hit_at(&self, entry: &Entry) -> Option<Hit> {
        match entry.line {
            Some(line) => self.lines.hit(entry.heading.key, line),
            None => entry.heading.hit_in(&self.bytes(entry, entry.heading.hit)?),
        }
    }

    /// The latest hit of a key that holds and that `whole` agrees to.
    pub(crate) fn hit(&self, key: &Digest, whole: impl Fn(&Hit) -> bool) -> Option<Hit> {
        self.entries_of(key).find_map(|entry| self.hit_at(entry).filter(|hit| whole(hit)))
    }

    /// The latest record of a key that holds.
    pub(crate) fn record(&self, key: &Digest) -> Option<Record> {
        self.entries_of(key).find_map(|entry| self.record_at(entry))
    }

    /// Every record that holds, the latest of each key, in the order of the keys.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut keys: Vec<&Digest> = self.latest.keys().collect();
        keys.sort();
        keys.into_iter().filter_map(|key| self.record(key)).collect()
    }

    /// Each journal's name and the length of what holds in it.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = (&str, u64)> {
        self.segments.iter().map(|segment| (segment.name.as_str(), segment.read_to))
    }

    /// The records of one journal, behind `from`, in their order.
    pub(crate) fn records_behind(&self, name: &str, from: u64) -> Vec<Record> {
        let of = |entry: &&Entry| self.segments[entry.segment as usize].name == name && entry.offset > from;
        self.entries.iter().filter(of).filter_map(|entry| self.record_at(entry)).collect()
    }

    /// Records that do not hold: their instances, where that can still be read.
    pub(crate) fn damaged(&self) -> Vec<Option<String>> {
        let damaged = self.entries.iter().filter(|entry| self.record_at(entry).is_none());
        damaged.map(|entry| Some(entry.heading.hit_in(&self.bytes(entry, entry.heading.hit)?)?.instance)).collect()
    }

    /// The journal that this process appends to, made at the first call.
    pub(crate) fn begin(&mut self, name: &str) -> Result<Writer> {
        let made = Writer::create(&self.folder, name)?;
        self.own = Some(made.name.clone());
        let file = OnceLock::new();
        self.segments.push(Segment { name: made.name.clone(), file, read_to: 0, live: true });
        Ok(made)
    }

    /// Takes in what this process has appended.
    pub(crate) fn appended(&mut self, writer: &Writer, entries: Vec<(Heading, u64)>) {
        let Some(index) = self.segments.iter().position(|segment| segment.name == writer.name) else { return };
        self.segments[index].read_to = writer.length;
        entries.into_iter().for_each(|(heading, offset)| self.add(heading, index as u32, offset, None));
    }
}

/// A heading may stand behind the torn end of a record: it begins where its word does.
fn start_of_heading(line: &[u8]) -> &[u8] {
    let word = |w: &str| line.windows(w.len()).rposition(|window| window == w.as_bytes());
    let start = word(HEADING).or_else(|| word(DIFFERS)).unwrap_or(0);
    &line[start..]
}

/// Whether the length in a heading can be believed: its body ends with a line end, or the next frame begins where it ends.
/// Moves the reader behind the body if so.
fn self_delimits(reader: &mut BufReader<At>, file: &File, place: u64, heading: &Heading) -> std::io::Result<bool> {
    if heading.body == 0 {
        return Ok(false);
    }
    let end = place + u64::from(heading.body);
    let mut around = [0; 1 + DIFFERS.len()];
    let read = file.read_at(&mut around, end - 1)?;
    let next = &around[1..read.max(1)];
    let believed = around[0] == b'\n' || next.starts_with(HEADING.as_bytes()) || next.starts_with(DIFFERS.as_bytes());
    if believed {
        reader.seek_relative(i64::from(heading.body))?;
    }
    Ok(believed)
}

/// A file read at an offset of its own, so that readers share one open file.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl std::io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl std::io::Seek for At<'_> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        self.offset = match to {
            std::io::SeekFrom::Start(offset) => offset,
            std::io::SeekFrom::Current(by) => self.offset.saturating_add_signed(by),
            std::io::SeekFrom::End(by) => self.file.metadata()?.len().saturating_add_signed(by),
        };
        Ok(self.offset)
    }
}

#[cfg(test)]
mod tests;
