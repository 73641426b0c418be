//! The execution record: what ran, from what, to what. Written once, carrying its own digest.
//!
//! On disk a record is a frame of a journal (see `journal`): a heading with its key, its digest and its lengths, then two
//! lines of JSON. The first, the [`Hit`], is all that planning needs; the second is everything else. Each has a digest, so that
//! planning need not read what it does not use. A line that is cut short or altered does not hold, and so does not exist.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Canonical, Digest};

/// How the heading of a record's frame begins. History: 1, a file for each record; 2, frames of a journal.
pub(crate) const HEADING: &str = "siteline-record 2 ";
/// The same for a record whose outputs differ from those of an earlier one under the same key: it is kept and never used.
pub(crate) const DIFFERS: &str = "siteline-differs 2 ";

/// What ran, from what, to what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The key under which the outputs may be used again.
    pub key: Digest,
    /// The parts that the key was made of, as the pipeline wrote them.
    pub parts: Parts,
    /// The instance: `train[held_out=C,method=mcdrl]`.
    pub instance: String,
    /// The manifest's name.
    pub manifest: String,
    /// The stage kind.
    pub kind: String,
    /// The run that executed it.
    pub run: String,
    /// Start, in milliseconds since 1970.
    pub started_ms: u64,
    /// End, in milliseconds since 1970.
    pub finished_ms: u64,
    /// The executions whose outputs it read.
    pub inputs: Vec<RecordInput>,
    /// The files from outside the store that it read.
    pub sources: Vec<RecordSource>,
    /// What it made.
    pub outputs: Vec<Output>,
    /// Numbers that it reported.
    pub metrics: BTreeMap<String, f64>,
    /// Where and with what it ran; never part of the key.
    pub environment: BTreeMap<String, String>,
}

/// What a key was made of, as JSON that only whoever wrote it takes apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parts(Box<RawValue>);

impl Parts {
    /// `parts` as JSON.
    ///
    /// # Errors
    /// A value that is none, such as a map with keys that are no text.
    pub fn of(parts: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::value::to_raw_value(parts).map(Self)
    }

    /// The parts as a value.
    ///
    /// # Errors
    /// JSON of something else.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.0.get())
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

/// What planning needs of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The key.
    pub key: Digest,
    /// The instance that made it, which may have another name today.
    pub instance: String,
    /// The run that executed it.
    pub run: String,
    /// What it made.
    pub outputs: Vec<Output>,
}

/// An input of an execution: the execution that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordInput {
    /// The input's name.
    pub name: String,
    /// The instance that made it.
    pub instance: String,
    /// That instance's key.
    pub key: Digest,
}

/// A file from outside the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSource {
    /// The source's name: `raw`, `weights`.
    pub source: String,
    /// What it is: `image`, `mask`.
    pub role: String,
    /// What tells it from others of its role.
    pub label: String,
    /// Where it lay.
    pub path: PathBuf,
    /// What it held.
    pub digest: Digest,
}

/// A file that an execution made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Output {
    /// Its path in the output directory, with `/`.
    pub path: String,
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The first line of a frame's body.
#[derive(Serialize, Deserialize)]
struct HitLine<'a> {
    instance: Cow<'a, str>,
    run: Cow<'a, str>,
    outputs: Cow<'a, [Output]>,
}

/// The second line of a frame's body.
#[derive(Serialize, Deserialize)]
struct Rest<'a> {
    parts: Cow<'a, Parts>,
    manifest: Cow<'a, str>,
    kind: Cow<'a, str>,
    started_ms: u64,
    finished_ms: u64,
    inputs: Cow<'a, [RecordInput]>,
    sources: Cow<'a, [RecordSource]>,
    metrics: Cow<'a, BTreeMap<String, f64>>,
    environment: Cow<'a, BTreeMap<String, String>>,
}

/// What the heading of a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heading {
    pub key: Digest,
    /// Of the key, the hit's line and the digest of the rest.
    pub digest: Digest,
    /// Of the rest.
    pub rest: Digest,
    /// Length of the hit's line, in bytes, its line end included.
    pub hit: u32,
    /// Length of both lines.
    pub body: u32,
}

impl Heading {
    /// Reads a heading's line, without its line end. The second value says whether the record may be used.
    pub(crate) fn parse(line: &[u8]) -> Option<(Self, bool)> {
        let line = std::str::from_utf8(line).ok()?;
        let (rest, used) = match line.strip_prefix(HEADING) {
            Some(rest) => (rest, true),
            None => (line.strip_prefix(DIFFERS)?, false),
        };
        let mut words = rest.split(' ');
        // One spelling each, as with digests.
        let number = |word: &str| word.parse::<u32>().ok().filter(|number| number.to_string() == word);
        let heading = Self {
            key: words.next()?.parse().ok()?,
            digest: words.next()?.parse().ok()?,
            rest: words.next()?.parse().ok()?,
            hit: number(words.next()?)?,
            body: number(words.next()?)?,
        };
        (words.next().is_none() && heading.hit <= heading.body).then_some((heading, used))
    }

    /// The hit, if `line` is what the heading says.
    pub(crate) fn hit_in(&self, line: &[u8]) -> Option<Hit> {
        if line.len() != self.hit as usize || digest_of(&self.key, line, &self.rest) != self.digest {
            return None;
        }
        let line: HitLine = serde_json::from_slice(line).ok()?;
        let (instance, run) = (line.instance.into_owned(), line.run.into_owned());
        Some(Hit { key: self.key, instance, run, outputs: line.outputs.into_owned() })
    }

    /// The whole record, if `body` is what the heading says.
    pub(crate) fn record_in(&self, body: &[u8]) -> Option<Record> {
        let (line, rest) = body.split_at_checked(self.hit as usize)?;
        let hit = self.hit_in(line)?;
        if body.len() != self.body as usize || Digest::of_bytes(rest) != self.rest {
            return None;
        }
        let rest: Rest = serde_json::from_slice(rest).ok()?;
        Some(Record {
            key: self.key,
            parts: rest.parts.into_owned(),
            instance: hit.instance,
            manifest: rest.manifest.into_owned(),
            kind: rest.kind.into_owned(),
            run: hit.run,
            started_ms: rest.started_ms,
            finished_ms: rest.finished_ms,
            inputs: rest.inputs.into_owned(),
            sources: rest.sources.into_owned(),
            outputs: hit.outputs,
            metrics: rest.metrics.into_owned(),
            environment: rest.environment.into_owned(),
        })
    }
}

fn digest_of(key: &Digest, hit: &[u8], rest: &Digest) -> Digest {
    Digest::of_parts(&[key.as_bytes(), hit, rest.as_bytes()])
}

impl Record {
    /// The digest of all outputs as a tree: paths and contents.
    pub fn tree(&self) -> Digest {
        tree_digest(&self.outputs)
    }

    /// What planning needs of it.
    pub fn hit(&self) -> Hit {
        Hit { key: self.key, instance: self.instance.clone(), run: self.run.clone(), outputs: self.outputs.clone() }
    }

    /// The bytes of the record's frame.
    pub(crate) fn to_frame(&self, heading: &str) -> Vec<u8> {
        let (instance, run) = (Cow::Borrowed(self.instance.as_str()), Cow::Borrowed(self.run.as_str()));
        let line = HitLine { instance, run, outputs: Cow::Borrowed(&self.outputs) };
        let rest = Rest {
            parts: Cow::Borrowed(&self.parts),
            manifest: Cow::Borrowed(&self.manifest),
            kind: Cow::Borrowed(&self.kind),
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            inputs: Cow::Borrowed(&self.inputs),
            sources: Cow::Borrowed(&self.sources),
            metrics: Cow::Borrowed(&self.metrics),
            environment: Cow::Borrowed(&self.environment),
        };
        let mut body = serde_json::to_vec(&line).expect("a record is JSON");
        body.push(b'\n');
        let hit = body.len();
        serde_json::to_writer(&mut body, &rest).expect("a record is JSON");
        body.push(b'\n');
        let rest = Digest::of_bytes(&body[hit..]);
        let digest = digest_of(&self.key, &body[..hit], &rest);
        let mut frame = format!("{heading}{} {digest} {rest} {hit} {}\n", self.key, body.len()).into_bytes();
        frame.append(&mut body);
        frame
    }

    /// The record as a journal holds it. For tests and the fuzzer.
    pub fn frame(&self) -> Vec<u8> {
        self.to_frame(HEADING)
    }

    /// Reads one frame that is all of `bytes`; `None` if it does not hold. For tests and the fuzzer.
    pub fn from_frame(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|b| *b == b'\n')?;
        let (heading, used) = Heading::parse(&bytes[..end])?;
        heading.record_in(&bytes[end + 1..]).filter(|_| used)
    }
}

/// The digest of files as a tree.
pub(crate) fn tree_digest(outputs: &[Output]) -> Digest {
    let mut sorted: Vec<_> = outputs.iter().collect();
    sorted.sort();
    let mut canonical = Canonical::new("tree");
    canonical.list(sorted.len());
    for output in sorted {
        canonical.text(&output.path).digest(&output.digest);
    }
    canonical.finish()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(name: &str) -> Record {
        Record {
            key: Digest::of_bytes(name.as_bytes()),
            parts: Parts::of(&serde_json::json!({"kind": "train"})).unwrap(),
            instance: format!("train[seed={name}]"),
            manifest: "m".into(),
            kind: "train".into(),
            run: "r".into(),
            started_ms: 1,
            finished_ms: 2,
            inputs: vec![],
            sources: vec![],
            outputs: vec![Output { path: "a/b".into(), digest: Digest::of_bytes(b"x"), size: 1 }],
            metrics: BTreeMap::from([("dice".into(), 0.1 + 0.2)]),
            environment: BTreeMap::new(),
        }
    }

    #[test]
    fn a_record_survives_the_way_to_disk_and_back() {
        let record = sample("0");
        assert_eq!(Record::from_frame(&record.to_frame(HEADING)), Some(record));
    }

    #[test]
    fn a_record_cut_at_any_length_or_with_any_bit_flipped_does_not_exist() {
        let bytes = sample("0").to_frame(HEADING);
        for length in 0..bytes.len() {
            assert!(Record::from_frame(&bytes[..length]).is_none(), "cut at {length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::from_frame(&damaged).is_none(), "bit {bit}");
        }
    }
}
