use proptest::prelude::*;

use super::*;

fn problems(text: &str, yaml: bool) -> String {
    let problems = parse("f", text.as_bytes(), yaml).unwrap_err();
    problems.iter().map(|p| format!("{p}\n")).collect()
}

fn blade(serial: &str, name: Option<&str>, rack: Option<&str>) -> ExpectedBlade {
    let text = |text: Option<&str>| text.map(str::to_owned);
    ExpectedBlade { serial: serial.into(), name: text(name), rack: text(rack), ..ExpectedBlade::default() }
}

#[test]
fn a_csv_list_is_read_in_any_order_of_columns() {
    let text = "\u{feff}# from the supplier\nrack,Serial , name\nr-01, SN1 ,b-001\n\n\"r-02\",SN.2,\n";
    let entries = parse("f", text.as_bytes(), false).unwrap();
    assert_eq!(
        entries,
        [
            Entry { line: 3, blade: blade("SN1", Some("b-001"), Some("r-01")) },
            Entry { line: 5, blade: blade("SN.2", None, Some("r-02")) },
        ]
    );
}

#[test]
fn every_problem_of_a_csv_list_is_told_with_its_line() {
    assert_eq!(
        problems(
            "serial,name,rack\nSN1,b-001,r-1\nSN1,b-002,r-1\nSN3,b-001,r-1\nSN 4,B-4,r/1\nSN5\n,b-006,\nb_001,,\nb.001,,\nSN9,b-001,\n",
            false
        ),
        "f:3: serial SN1 stands in line 2 already\n\
         f:4: name b-001 is used in line 2 already\n\
         f:5: serial \"SN 4\" is not 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends\n\
         f:5: blade name \"B-4\" is not 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends\n\
         f:5: rack name \"r/1\" is not 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends\n\
         f:6: has 1 fields, the header has 3\n\
         f:7: has no serial\n\
         f:8: name b-001 is used in line 2 already\n\
         f:9: name b-001 is used in line 2 already\n\
         f:10: name b-001 is used in line 2 already\n"
    );
}

#[test]
fn a_header_that_is_none_stops_the_reading() {
    assert_eq!(
        problems("1655,r-1\n1656,r-2\n", false),
        "f:1: column \"1655\" is none of serial, name, rack, slot, sku, nvlink_domain\n\
         f:1: column \"r-1\" is none of serial, name, rack, slot, sku, nvlink_domain\n\
         f:1: the first line has to name the columns, serial among them\n"
    );
    assert_eq!(problems("serial,serial\n", false), "f:1: column serial stands twice\n");
    assert_eq!(problems("", false), "f:1: lists no blade\n");
    assert_eq!(problems("serial\n", false), "f:1: lists no blade\n");
    assert!(
        parse("f", b"serial\n\xff\n", false).unwrap_err()[0].to_string().starts_with("f:2: is not UTF-8")
    );
}

#[test]
fn a_yaml_list_is_read_in_every_way_of_writing_it() {
    let want = [blade("0165", Some("b-001"), Some("r-01")), blade("SN2", None, None)];
    for text in [
        "- serial: 0165\n  name: b-001\n  rack: r-01\n- serial: SN2\n  rack: ~\n",
        "blades:\n  - {serial: 0165, name: b-001, rack: r-01}\n  - {serial: SN2}\n",
        "{blades: [{serial: \"0165\", name: b-001, rack: r-01}, {serial: SN2}]}\n",
    ] {
        let entries = parse("f", text.as_bytes(), true).unwrap();
        assert_eq!(entries.into_iter().map(|e| e.blade).collect::<Vec<_>>(), want, "{text}");
    }
}

#[test]
fn every_problem_of_a_yaml_list_is_told_with_its_line() {
    assert_eq!(
        problems(
            "blades:\n- serial: SN1\n  colour: red\n- name: b-2\n-\n  serial: SN3\n  nvlinkDomain: d 1\n",
            true
        ),
        "f:2: key \"colour\" is none of serial, name, rack, slot, sku, nvlink_domain\n\
         f:4: has no serial\n\
         f:5: NVLink domain \"d 1\" is not 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends\n"
    );
    // Lines of a flow list, found the other way.
    assert_eq!(
        problems("[{serial: SN1},\n {serial: SN2},\n\n {serial: SN1}]\n", true),
        "f:4: serial SN1 stands in line 1 already\n"
    );
    for (text, line, word) in [
        ("blades:\n  - serial: [1]\n", 2, "expected a"),
        ("blade: []\n", 1, "unknown key"),
        ("- just text\n", 1, "expected a blade"),
        ("blades: [\n", 2, "did not find"),
        ("{}", 1, "has no `blades`"),
    ] {
        let text = problems(text, true);
        assert!(text.starts_with(&format!("f:{line}: ")) && text.contains(word), "{text}");
    }
}

#[test]
fn a_list_that_is_too_long_is_refused_and_not_every_problem_of_it_is_told() {
    let long: String =
        std::iter::once("serial\n".to_owned()).chain((0..5001).map(|i| format!("S{i}\n"))).collect();
    assert_eq!(problems(&long, false), "f:1: 5001 blades; a tranche has at most 5000\n");
    let bad = "serial\n".to_owned() + &"-\n".repeat(5000);
    let told = problems(&bad, false);
    assert_eq!(told.lines().count(), MAX_PROBLEMS);
    assert!(told.contains("(and 4900 more problems)"), "{told}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_crash(bytes in proptest::collection::vec(any::<u8>(), 0..300), yaml: bool) {
        let _ = parse("f", &bytes, yaml);
    }

    #[test]
    fn no_text_of_its_kind_makes_it_crash_and_a_list_that_passes_has_no_serial_twice(
        text in "(serial|name|rack|sku|blades|SN1|SN2|b-1|[-,:{}\\[\\] \n\"'#&*~|>a-z0-9]){0,40}", yaml: bool
    ) {
        let text = if yaml { text } else { format!("serial,name\n{text}") };
        if let Ok(entries) = parse("f", text.as_bytes(), yaml) {
            let serials: std::collections::HashSet<_> = entries.iter().map(|e| &e.blade.serial).collect();
            prop_assert_eq!(serials.len(), entries.len());
            let lines = text.lines().count() as u64;
            prop_assert!(entries.iter().all(|e| (1..=lines).contains(&e.line)));
        }
    }
}
