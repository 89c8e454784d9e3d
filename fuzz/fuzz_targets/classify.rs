//! Bytes of any kind as a kernel log, in one piece and in two: no crash, the same faults either way, and no GPU fault
//! in a line without the words that make one.

#![no_main]

use std::convert::Infallible;

use libfuzzer_sys::fuzz_target;
use whetstone_model::fault::lines::{MAX_LINE, Splitter};
use whetstone_model::fault::{Classifier, Fault, Kind, Rules};

fn faults(rules: &'static Rules, pieces: [&[u8]; 2]) -> Vec<Option<Fault>> {
    let (mut splitter, mut classifier, mut found) =
        (Splitter::default(), Classifier::new(rules, None), Vec::new());
    let mut each = |line: whetstone_model::fault::lines::Line<'_>| {
        assert!(line.bytes.len() <= MAX_LINE);
        let fault = classifier.line(line.bytes);
        if let Some(fault) = &fault {
            let has = |word: &str| line.bytes.windows(word.len()).any(|window| window == word.as_bytes());
            match fault.kind {
                Kind::Xid => assert!(has("NVRM:") && (has("Xid") || has("fallen off the bus"))),
                Kind::Sxid => assert!(has("SXid")),
                _ => {}
            }
            let json = serde_json_round_trip(fault);
            assert_eq!(&json, fault);
        }
        found.push(fault);
        Ok::<(), Infallible>(())
    };
    for piece in pieces {
        let Ok(()) = splitter.push(piece, &mut each);
    }
    let Ok(()) = splitter.finish(&mut each);
    found
}

fn serde_json_round_trip(fault: &Fault) -> Fault {
    serde_json::from_slice(&serde_json::to_vec(fault).unwrap()).unwrap()
}

fuzz_target!(|data: &[u8]| {
    let rules = Rules::builtin().unwrap();
    let half = data.len() / 2;
    assert_eq!(faults(rules, [data, &[]]), faults(rules, [&data[..half], &data[half..]]));
});
