//! What each core got for the same work, and who disagrees.

use std::collections::BTreeMap;

/// Results kept at most; a bound on memory over a soak of hours on hundreds of cores.
const MAX_KEPT: usize = 1 << 20;

/// Digests by unit and round.
#[derive(Default)]
pub struct Ledger {
    names: BTreeMap<usize, String>,
    /// (unit, round) → (digest → cores that got it)
    kept: BTreeMap<(usize, u64), BTreeMap<u64, Vec<usize>>>,
    size: usize,
}

/// Cores whose result for one piece of work is not that of the majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    pub accused: Vec<usize>,
    pub detail: String,
}

impl Ledger {
    pub fn record(&mut self, unit: usize, name: &str, round: u64, core: usize, digest: u64) {
        if self.size >= MAX_KEPT {
            return;
        }
        self.size += 1;
        self.names.entry(unit).or_insert_with(|| name.to_owned());
        self.kept.entry((unit, round)).or_default().entry(digest).or_default().push(core);
    }

    /// The first disagreement of each unit. Without a majority nobody can say which core is wrong, and all are accused.
    pub fn disagreements(&self) -> Vec<Disagreement> {
        let mut found: BTreeMap<usize, Disagreement> = BTreeMap::new();
        for ((unit, round), digests) in self.kept.iter().filter(|(_, digests)| digests.len() > 1) {
            let all: usize = digests.values().map(Vec::len).sum();
            let (most, crowd) = digests
                .iter()
                .map(|(digest, cores)| (*digest, cores.len()))
                .fold((0, 0), |best, one| if one.1 > best.1 { one } else { best });
            let majority = 2 * crowd > all;
            let accused: Vec<usize> = digests
                .iter()
                .filter(|(digest, _)| !majority || **digest != most)
                .flat_map(|(_, cores)| cores.iter().copied())
                .collect();
            let name = self.names.get(unit).map_or("?", String::as_str);
            let others =
                if majority { format!("{crowd} cores got {most:#018x}") } else { "no majority".to_owned() };
            let detail =
                format!("{name}: round {round} differs between cores that did the same work ({others})");
            found.entry(*unit).or_insert(Disagreement { accused, detail });
        }
        found.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minority_is_accused_and_a_tie_accuses_all() {
        let mut ledger = Ledger::default();
        for (core, digest) in [(0, 7), (1, 7), (2, 9)] {
            ledger.record(0, "zstd", 4, core, digest);
        }
        for core in 0..3 {
            ledger.record(1, "lz4", 4, core, 5);
        }
        ledger.record(2, "aes", 0, 0, 1);
        ledger.record(2, "aes", 0, 1, 2);
        let found = ledger.disagreements();
        assert_eq!(found.iter().map(|d| d.accused.clone()).collect::<Vec<_>>(), [vec![2], vec![0, 1]]);
        assert!(found[0].detail.starts_with("zstd: round 4"));
    }
}
