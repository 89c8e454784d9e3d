//! Whom a bad transfer between two GPUs is put down to.

use std::collections::BTreeMap;

/// For each bad (from, to) pair the GPU to blame: of its two ends the one that more bad pairs have; the sender on a tie,
/// or the lower one where the pair is bad in both directions.
pub fn culprits(pairs: &[(usize, usize)]) -> Vec<usize> {
    let mut involved: BTreeMap<usize, usize> = BTreeMap::new();
    for (from, to) in pairs {
        *involved.entry(*from).or_default() += 1;
        *involved.entry(*to).or_default() += 1;
    }
    let times = |gpu: usize| involved.get(&gpu).copied().unwrap_or(0);
    pairs
        .iter()
        .map(|(from, to)| match times(*from).cmp(&times(*to)) {
            std::cmp::Ordering::Less => *to,
            std::cmp::Ordering::Greater => *from,
            std::cmp::Ordering::Equal if pairs.contains(&(*to, *from)) => (*from).min(*to),
            std::cmp::Ordering::Equal => *from,
        })
        .collect()
}

/// Of a wrong sum: the one contribution that explains it by a single flipped bit, as (contributor, bit). `None` if none or
/// several do.
pub fn contributor(values: &[f32], expected: f32, got: f32) -> Option<(usize, u32)> {
    let mut found = None;
    for (rank, value) in values.iter().enumerate() {
        for bit in 0..32 {
            let flipped = f32::from_bits(value.to_bits() ^ (1 << bit));
            let sum = f64::from(expected) - f64::from(*value) + f64::from(flipped);
            // The sum with a flipped value may round, by the order in which it was added.
            let near = (sum - f64::from(got)).abs() <= sum.abs() * 1e-6;
            let alike = near || (sum as f32).to_bits() == got.to_bits() || (sum.is_nan() && got.is_nan());
            if alike && found.replace((rank, bit)).is_some() {
                return None;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_in_all_bad_pairs_is_to_blame() {
        assert_eq!(culprits(&[(3, 0), (3, 1), (2, 3)]), [3, 3, 3]);
        assert_eq!(culprits(&[(4, 6)]), [4]);
        assert_eq!(culprits(&[(2, 5), (5, 2)]), [2, 2]);
    }

    #[test]
    fn a_flipped_contribution_is_found_in_the_sum() {
        let values = [11.0f32, -70_003.0, 1_234.0, 99_991.0];
        let expected: f32 = values.iter().sum();
        let mut named = 0;
        for rank in 0..4 {
            for bit in 0..32 {
                let mut broken = values;
                broken[rank] = f32::from_bits(values[rank].to_bits() ^ (1 << bit));
                let got: f32 = broken.iter().sum();
                if got.to_bits() != expected.to_bits() {
                    // Two contributions can explain the same sum; then none is named, and never a wrong one.
                    let found = contributor(&values, expected, got);
                    assert!(
                        found.is_none_or(|found| found == (rank, bit)),
                        "rank {rank} bit {bit}: {found:?}"
                    );
                    named += usize::from(found.is_some());
                }
            }
        }
        assert!(named > 30, "{named}");
        assert_eq!(contributor(&values, expected, expected + 0.123), None);
        // Equal contributions cannot be told apart.
        assert_eq!(contributor(&[5.0, 5.0], 10.0, 14.0), None);
    }
}
