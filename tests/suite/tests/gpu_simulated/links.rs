//! Copies and collectives.

use serde_json::json;
use whetstone_burnin::protocol::Event;
use whetstone_burnin::suite::{Collective, TestKind};
use whetstone_model::report::TestOutcome;
use whetstone_suite::sim_libraries;

use crate::child::{Said, h100};
use crate::compute::kind;

fn bandwidth() -> TestKind {
    kind("gpu_bandwidth", json!({ "mib": 1, "repeats": 2 }))
}

fn collectives() -> TestKind {
    kind("gpu_collectives", json!({ "mib": 1, "repeats": 2 }))
}

const FOUR: [usize; 4] = [0, 1, 2, 3];

fn matrices(said: &Said) -> Vec<(&str, usize)> {
    let matrices = said.events.iter().filter_map(|e| if let Event::Matrix(m) = e { Some(m) } else { None });
    matrices.map(|m| (m.metric.as_str(), m.values.iter().flatten().flatten().count())).collect()
}

#[test]
fn clean_copies_pass_and_fill_the_matrices() {
    let blade = h100("");
    let said = blade.run(bandwidth(), &FOUR);
    said.assert_clean();
    assert_eq!(matrices(&said), [("p2p.bandwidth", 12), ("p2p.bidir.bandwidth", 12), ("p2p.latency", 12)]);
    for slot in FOUR {
        let device = blade.uuid(slot);
        let h2d = said.reading(Some(&device), "pcie.h2d.bandwidth").unwrap();
        let both = said.reading(Some(&device), "pcie.bidir.bandwidth").unwrap();
        assert!(h2d > 40.0 && both > 1.5 * h2d, "gpu{slot}: {h2d} and {both} GB/s");
    }
}

#[test]
fn a_corrupt_copy_is_put_down_to_its_gpu_and_direction() {
    for (direction, words) in [
        ("host_to_device", "from the host to the GPU"),
        ("device_to_host", "from the GPU to the host"),
        ("peer", "copy gpu2 to gpu"),
    ] {
        let fault = format!(
            "[[fault]]\nkind = \"copy_flip\"\ngpu = 2\ndirection = \"{direction}\"\nbit = 5\nevery_n = 4\n"
        );
        let blade = h100(&fault);
        let said = blade.run(bandwidth(), &FOUR);
        let text = said.assert_fault("copy-corruption", &blade.uuid(2));
        assert!(text.contains(words) && text.contains("xor 0x20"), "{direction}: {text}");
    }
}

#[test]
fn a_slow_link_is_found_between_its_two_ends() {
    let blade = h100("[[fault]]\nkind = \"slow_link\"\ngpu = 1\npeer = 2\npercent = 40.0\n");
    let said = blade.run(bandwidth(), &FOUR);
    let text = said.assert_fault("slow-p2p", &blade.uuid(1));
    assert!(text.contains("gpu1 to gpu2") && text.contains("gpu2 to gpu1"), "{text}");
    assert!(!text.contains("gpu0") && !text.contains("gpu3"), "{text}");
}

#[test]
fn clean_collectives_pass_with_a_rate_for_each() {
    let blade = h100("");
    let said = blade.run(collectives(), &FOUR);
    said.assert_clean();
    for operation in Collective::ALL {
        let rate = said.reading(None, &format!("nccl.{}.busbw", operation.as_str())).unwrap();
        assert!((100.0..450.0).contains(&rate), "{operation:?}: {rate} GB/s");
    }
    let version = said.events.iter().find_map(|e| match e {
        Event::NcclVersion { version } => Some(version.as_str()),
        _ => None,
    });
    assert_eq!(version, Some("2.27.3"));
}

/// As NVIDIA's packages install it: `libnccl.so.2` only, which cudarc never looks for.
#[test]
fn nccl_is_found_by_its_versioned_name_alone() {
    let blade = h100("");
    let libraries = tempfile::tempdir().unwrap();
    for name in ["libcuda.so.1", "libnccl.so.2"] {
        std::os::unix::fs::symlink(sim_libraries().join(name), libraries.path().join(name)).unwrap();
    }
    blade.start_in(libraries.path(), collectives(), &[0, 1]).into_end().assert_clean();
    assert_eq!(blade.left_over(), 0, "the link is gone");
}

#[test]
fn no_nccl_is_inconclusive_and_says_so() {
    let blade = h100("");
    let libraries = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(sim_libraries().join("libcuda.so.1"), libraries.path().join("libcuda.so.1"))
        .unwrap();
    let said = blade.start_in(libraries.path(), collectives(), &[0, 1]).into_end();
    assert_eq!(said.outcome, TestOutcome::Inconclusive);
    assert!(said.detail.contains("libnccl.so.2"), "{}", said.detail);
}

#[test]
fn one_gpu_has_nothing_to_collect_from() {
    let said = h100("").run(collectives(), &[0]);
    assert_eq!(said.outcome, TestOutcome::NotApplicable);
}

#[test]
fn a_wrong_contribution_is_traced_to_its_gpu() {
    for every_n in [1, 3] {
        let fault = format!("[[fault]]\nkind = \"nccl_flip\"\ngpu = 2\nbit = 11\nevery_n = {every_n}\n");
        let blade = h100(&fault);
        let said = blade.run(collectives(), &FOUR);
        let text = said.assert_fault("collective-corruption", &blade.uuid(2));
        assert!(text.contains("all through gpu2") && text.contains("xor 0x800"), "{text}");
    }
}
