//! Layer two of the corruption test: devices of one model that compute the same thing must get the same bits.

use std::collections::BTreeMap;

use whetstone_model::action::{Action, Severity};
use whetstone_model::device::DeviceId;
use whetstone_model::evidence::Finding;
use whetstone_model::report::Digest;

/// What disagreeing digests say. A minority against at least two alike is at fault; without a majority
/// somebody is wrong and nobody can be named, so the fault is the blade's (`device: None`).
pub fn disagreements(digests: &[Digest]) -> Vec<Finding> {
    let mut by_key: BTreeMap<&str, BTreeMap<&str, Vec<&DeviceId>>> = BTreeMap::new();
    for digest in digests {
        by_key.entry(&digest.key).or_default().entry(&digest.value).or_default().push(&digest.device);
    }
    by_key
        .into_iter()
        .filter(|(_, values)| values.len() > 1)
        .flat_map(|(key, values)| explain(key, &values))
        .collect()
}

fn explain(key: &str, values: &BTreeMap<&str, Vec<&DeviceId>>) -> Vec<Finding> {
    let total: usize = values.values().map(Vec::len).sum();
    let fault = |device: Option<DeviceId>, action, detail| Finding {
        code: "digest-disagreement".to_owned(),
        device,
        severity: Severity::Fault,
        action,
        detail,
        reading: None,
    };
    match values.iter().find(|(_, devices)| devices.len() >= 2 && devices.len() * 2 > total) {
        Some((right, devices)) => {
            let (right, alike) = (*right, devices.len());
            values
                .iter()
                .filter(|(value, _)| **value != right)
                .flat_map(|(value, wrong)| wrong.iter().map(move |d| (*value, *d)))
                .map(|(value, device)| {
                    let detail = format!(
                        "{key}: digest {value}, {alike} other devices of this blade agree on {right}"
                    );
                    fault(Some(device.clone()), Action::Replace, detail)
                })
                .collect()
        }
        None => {
            let detail =
                format!("{key}: {total} devices gave {} different digests, no majority", values.len());
            vec![fault(None, Action::DrainAndTest, detail)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(device: &str, value: &str) -> Digest {
        Digest { device: DeviceId::new(device).unwrap(), key: "bf16".into(), value: value.into() }
    }

    #[test]
    fn the_minority_is_named_only_against_a_majority() {
        assert!(disagreements(&[digest("a", "1"), digest("b", "1")]).is_empty());
        let found = disagreements(&[digest("a", "1"), digest("b", "1"), digest("c", "2")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].device.as_ref().unwrap().as_str(), "c");
        let found = disagreements(&[digest("a", "1"), digest("b", "2")]);
        assert_eq!((found.len(), found[0].device.clone()), (1, None));
    }
}
