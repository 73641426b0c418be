//! Records of the store's journals.
#![no_main]

use libfuzzer_sys::fuzz_target;
use siteline_cache::Record;

fuzz_target!(|bytes: &[u8]| {
    if let Some(record) = Record::from_frame(bytes) {
        // What holds is what was written: no other bytes mean the same record.
        assert_eq!(record.frame(), bytes);
    }
});
