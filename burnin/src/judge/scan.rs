//! Which values stand apart: from the worst quarter inwards, so that several faulty ones cannot hide each other.

use crate::judge::robust;
use crate::judge::tail::Tail;

/// A healthy second kind (other cooling, other cable, other firmware that nobody wrote down) is assumed to hold at
/// least this share of its cohort. A smaller group may be called faulty, a larger one is a kind of its own.
const LEAST_KIND: f64 = 0.25;
/// The same for a group that lies far away ([`FAR`]): kinds so different are expected to be about even.
const LEAST_FAR_KIND: f64 = 0.35;
/// "Far": this much of the median away …
const FAR: f64 = 0.04;
/// … in a metric whose noise is at most this much of the median.
const PRECISE: f64 = 0.01;
/// Never more than this share is accused.
const MOST_ACCUSED: f64 = 0.25;
/// An accused value stands apart from its neighbour by at least this many spreads: whatever the probability says,
/// the last of an even row is not an outlier.
const LEAST_GAP: f64 = 0.5;
/// And from the median of its cohort by at least this many: nobody acts on less.
const LEAST_SPREADS: f64 = 3.0;
/// A group this many times as wide as the rest is no kind of its own, whose members would be alike, but a number of
/// single cases. Needs [`SCATTER_SIZE`] members to be told.
const SCATTER: f64 = 4.0;
const SCATTER_SIZE: usize = 4;

/// Factor on the level of the test for gaps, set so that even the heaviest healthy noise that is planned for
/// (lognormal with sigma 1 towards the bad side, 24 devices) stays about the stated rate; see
/// `docs/benchmarks/fleet-judge.md`.
const CAUTION: f64 = 0.6;

/// What to look at: values with larger = worse.
pub struct Look<'a> {
    /// Values as they shape the distribution.
    pub core: &'a [f64],
    /// The same values as they are held against it (never worse than in `core`).
    pub held: &'a [f64],
    /// Smallest believable standard deviation.
    pub least_width: f64,
    /// |median| of the cohort, for the relative rules.
    pub center: f64,
    /// Accuse below this probability …
    pub level: f64,
    /// … times n² / (n² + this²): small cohorts show least of their noise's shape.
    pub small: f64,
    /// Probability to accuse a healthy device because its kind came out rare by chance.
    pub kind_level: f64,
    /// True if one value may be accused whatever the size of the cohort, when it is far: for three or four blades.
    pub lone_far: bool,
}

impl Look<'_> {
    /// The probability below which a value of this cohort is accused.
    pub fn level(&self) -> f64 {
        let n = self.core.len() as f64;
        self.level * n * n / (n * n + self.small * self.small)
    }
}

/// What was found.
pub struct Seen {
    /// Index into the values, and the probability of a healthy value there.
    pub accused: Vec<(usize, f64)>,
    /// The distribution of those that were not accused; `None` if all are equal.
    pub tail: Option<Tail>,
    /// A group that stands apart but is too large to be called faulty: its size and its distance.
    pub second_kind: Option<(usize, f64)>,
}

/// Looks for values that stand apart on the worse side.
pub fn scan(look: &Look<'_>) -> Seen {
    let n = look.core.len();
    let mut order: Vec<usize> = (0..n).collect();
    // Worst first. Ties by index, which the caller derives from names, not from the input's order.
    order.sort_by(|&a, &b| look.held[b].total_cmp(&look.held[a]).then(a.cmp(&b)));
    let level = look.level();
    let mut second_kind = None;
    for k in (1..=n * 2 / 5).rev() {
        let (candidates, rest) = order.split_at(k);
        let innermost = look.held[candidates[k - 1]];
        let mut core: Vec<f64> = rest.iter().map(|&i| look.core[i]).collect();
        core.sort_by(f64::total_cmp);
        let width = robust::width(&core).max(look.least_width);
        let edge = core[core.len() - 1];
        let distance = innermost - robust::median_of_sorted(&core);
        if innermost - edge < LEAST_GAP * width || distance < LEAST_SPREADS * width {
            continue;
        }
        let Some(tail) = Tail::fit(&core, look.least_width) else { continue };
        if tail.beyond(innermost) >= level {
            continue;
        }
        // Leaving out k healthy extremes makes the rest look narrow. So also: had all been healthy, how probable is
        // a gap like this after which k values follow? Accusing k of n once in a while costs k/n each time, and
        // the chances of all k together, 1/(k (k+1)) of the level each, add up to the level.
        let Some(all_healthy) = Tail::fit_below(&core, look.least_width, k) else { continue };
        let (k_f, n_f) = (k as f64, n as f64);
        if all_healthy.gap(edge, innermost, k) >= CAUTION * level * n_f / (k_f * k_f * (k_f + 1.0)) {
            continue;
        }
        let far = distance >= FAR * look.center && width <= PRECISE * look.center;
        let mut group: Vec<f64> = candidates.iter().map(|&i| look.core[i]).collect();
        group.sort_by(f64::total_cmp);
        let scattered = k >= SCATTER_SIZE && robust::width(&group) >= SCATTER * width;
        let most = if scattered { (MOST_ACCUSED * n as f64) as usize } else { most_accused(n, far, look) };
        if k > most {
            second_kind.get_or_insert((k, distance));
            continue;
        }
        let accused = candidates.iter().map(|&i| (i, tail.beyond(look.held[i]))).collect();
        return Seen { accused, tail: Some(tail), second_kind };
    }
    Seen { accused: Vec::new(), tail: Tail::fit(look.core, look.least_width), second_kind }
}

/// The largest group that may be called faulty: a healthy kind of the least share comes out so small so rarely that
/// its devices are accused with no more than `kind_level`.
pub fn most_accused(n: usize, far: bool, look: &Look<'_>) -> usize {
    let share = if far { LEAST_FAR_KIND } else { LEAST_KIND };
    let cap = (MOST_ACCUSED * n as f64) as usize;
    let (mut risk, mut most) = (0.0, 0);
    // Binomial probabilities by their ratio, from none upwards.
    let mut chance = (1.0 - share).powi(n.min(100_000) as i32);
    for k in 1..=cap {
        chance *= (n - k + 1) as f64 / k as f64 * share / (1.0 - share);
        risk += chance * k as f64 / n as f64;
        if risk > look.kind_level {
            break;
        }
        most = k;
    }
    // So many that the first probability underflows: the share itself decides.
    if n > 2_000 {
        most = (0.8 * share * n as f64) as usize
    }
    if far && look.lone_far { most.max(1) } else { most }.min(cap.max(usize::from(look.lone_far)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(n: usize, values: &[f64]) -> Look<'_> {
        Look {
            core: &values[..n],
            held: &values[..n],
            least_width: 0.0,
            center: 100.0,
            level: 0.003,
            small: 0.0,
            kind_level: 0.005,
            lone_far: false,
        }
    }

    #[test]
    fn a_group_may_be_called_faulty_up_to_the_sizes_that_the_page_states() {
        let values = vec![0.0; 5_000];
        for (n, near, far) in
            [(8, 0, 0), (24, 2, 3), (64, 9, 14), (128, 22, 32), (320, 64, 80), (5_000, 1_000, 1_250)]
        {
            let look = look(n, &values);
            assert_eq!((most_accused(n, false, &look), most_accused(n, true, &look)), (near, far), "{n}");
        }
    }

    #[test]
    fn masked_values_are_found_together_and_an_even_row_is_left_alone() {
        let even: Vec<f64> = (0..64).map(|i| f64::from(i * 37 % 64) / 64.0).collect();
        assert!(scan(&look(64, &even)).accused.is_empty());
        let mut values = even.clone();
        for i in [3, 17, 40] {
            values[i] = 6.0;
        }
        let mut found: Vec<usize> = scan(&look(64, &values)).accused.iter().map(|(i, _)| *i).collect();
        found.sort_unstable();
        assert_eq!(found, [3, 17, 40]);
    }
}
