//! Lines of the stage protocol, from either side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use siteline_pipeline::protocol::{Reply, Request, bytes};

fuzz_target!(|line: &[u8]| {
    if let Ok(reply) = serde_json::from_slice::<Reply>(line) {
        // What was read can be written and read again.
        let text = serde_json::to_string(&reply).expect("a reply is JSON");
        assert!(serde_json::from_str::<Reply>(&text).is_ok(), "{text}");
    }
    let _ = serde_json::from_slice::<Request>(line);
    let _ = std::str::from_utf8(line).map(bytes);
});
