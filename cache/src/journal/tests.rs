//! What a journal and its index promise.

use super::*;
use crate::record::tests::sample;

fn write(folder: &Path, bytes: &[u8]) {
    fs::write(folder.join("a.records"), bytes).unwrap();
}

#[test]
fn a_journal_cut_at_any_length_keeps_the_records_in_front_of_the_cut() {
    let dir = tempfile::tempdir().unwrap();
    let frames: Vec<Vec<u8>> = ["0", "1", "2"].iter().map(|n| sample(n).to_frame(HEADING)).collect();
    let all = frames.concat();
    for length in 0..=all.len() {
        write(dir.path(), &all[..length]);
        let mut end = 0;
        let whole = frames.iter().take_while(|f| (end += f.len(), end <= length).1).count();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.records().len(), whole, "cut at {length}");
    }
}

#[test]
fn a_journal_with_any_bit_flipped_loses_one_record_at_most_and_gains_none() {
    let dir = tempfile::tempdir().unwrap();
    let samples = ["0", "1", "2"].map(sample);
    let all: Vec<u8> = samples.iter().flat_map(|s| s.to_frame(HEADING)).collect();
    for bit in 0..all.len() * 8 {
        let mut damaged = all.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        write(dir.path(), &damaged);
        let found = Journal::open(dir.path()).unwrap().records();
        assert!(found.len() == 2, "bit {bit} leaves {} records", found.len());
        assert!(found.iter().all(|record| samples.contains(record)), "bit {bit}");
    }
}

fn append(journal: &mut Journal, writer: &mut Option<Writer>, name: &str, frames: &[(&Record, bool)]) {
    let writer = writer.get_or_insert_with(|| journal.begin(name).unwrap());
    let entries = writer.append(frames).unwrap();
    journal.appended(writer, entries);
}

/// A folder with a journal of so many records and its index.
fn indexed(folder: &Path, count: usize) -> Vec<Record> {
    let samples: Vec<Record> = (0..count).map(|n| sample(&n.to_string())).collect();
    let mut journal = Journal::open(folder).unwrap();
    let frames: Vec<(&Record, bool)> = samples.iter().map(|record| (record, true)).collect();
    append(&mut journal, &mut None, "a", &frames);
    journal.write_index(folder).unwrap();
    samples
}

fn hits(folder: &Path, samples: &[Record]) -> (Journal, usize) {
    let journal = Journal::open(folder).unwrap();
    let holds = |record: &&Record| {
        let hit = journal.hit(&record.key, |_| true);
        hit.is_some_and(|hit| hit.outputs == record.outputs && hit.instance == record.instance && hit.run == record.run)
    };
    let found = samples.iter().filter(holds).count();
    (journal, found)
}

#[test]
fn the_index_says_what_the_journals_say_and_grows_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut samples = indexed(dir.path(), 3);
    let (mut journal, found) = hits(dir.path(), &samples);
    assert_eq!((journal.indexed, found), (3, 3));
    assert_eq!(journal.records().len(), 3);
    samples.push(sample("further"));
    append(&mut journal, &mut None, "b", &[(&samples[3], true)]);
    let (mut journal, found) = hits(dir.path(), &samples);
    assert_eq!((journal.indexed, found), (3, 4));
    // A few more are not worth another one; many are.
    journal.index(dir.path()).unwrap();
    assert_eq!(hits(dir.path(), &samples).0.indexed, 3);
    let more: Vec<Record> = (0..index::WORTH).map(|n| sample(&format!("more {n}"))).collect();
    append(&mut journal, &mut None, "c", &more.iter().map(|record| (record, true)).collect::<Vec<_>>());
    journal.index(dir.path()).unwrap();
    samples.extend(more);
    let (journal, found) = hits(dir.path(), &samples);
    assert_eq!((journal.indexed, found), (index::WORTH + 4, index::WORTH + 4));
}

/// Whatever becomes of the index, hits are those of the journals.
#[test]
fn an_index_cut_at_any_length_or_with_any_bit_flipped_or_of_other_journals_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let samples = indexed(dir.path(), 3);
    let path = dir.path().join(index::NAME);
    let whole = fs::read(&path).unwrap();
    for place in 0..whole.len() {
        fs::write(&path, &whole[..place]).unwrap();
        let (journal, found) = hits(dir.path(), &samples);
        assert_eq!((journal.indexed, found), (0, 3), "cut at {place}");
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << bit;
            fs::write(&path, &damaged).unwrap();
            let (journal, found) = hits(dir.path(), &samples);
            assert_eq!((journal.indexed, found), (0, 3), "bit {bit} of byte {place}");
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(hits(dir.path(), &samples).0.indexed, 3);
    let records = dir.path().join("a.records");
    let journal = fs::read(&records).unwrap();
    fs::write(&records, &journal[..journal.len() - 1]).unwrap();
    let (journal, found) = hits(dir.path(), &samples);
    assert_eq!((journal.indexed, found), (0, 2), "the journal was cut short");
    fs::remove_file(&records).unwrap();
    assert_eq!(hits(dir.path(), &samples).1, 0, "the journal is gone");
}

#[test]
fn what_is_appended_is_found_by_other_readers() {
    let dir = tempfile::tempdir().unwrap();
    let (mut mine, mut theirs) = (Journal::open(dir.path()).unwrap(), Journal::open(dir.path()).unwrap());
    let mut writer = None;
    for name in ["0", "1", "2"] {
        let record = sample(name);
        append(&mut mine, &mut writer, "run", &[(&record, true)]);
        theirs.refresh().unwrap();
        assert_eq!(theirs.record(&record.key), Some(record.clone()));
        assert_eq!(mine.record(&record.key), Some(record));
    }
}
