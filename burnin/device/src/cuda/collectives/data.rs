//! What the ranks send and what each must receive.

use whetstone_burnin::exact::SplitMix64;
use whetstone_burnin::suite::Collective;

/// Elements after which a rank's data repeat: a prime, so that no segment starts at the same place in the table.
const PERIOD: usize = 4099;
/// Largest magnitude: sums over up to 128 ranks stay below 2^24, where f32 holds every integer.
const LARGEST: i64 = (1 << 17) - 1;
/// Wrong elements that a rank reports of one result; all are counted.
pub const MAX_REPORTED: usize = 32;

/// Where a received element comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Sent by this rank alone.
    Rank(usize),
    /// The sum of all ranks' elements with this index.
    Sum(usize),
}

/// An element that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongElement {
    /// Place in the receiver's buffer.
    pub index: usize,
    pub expected: u32,
    pub got: u32,
    pub origin: Origin,
}

/// The data of all ranks.
pub struct Data {
    /// Elements of a full buffer, a multiple of the number of ranks.
    elements: usize,
    /// One table of f32 bits per rank.
    tables: Vec<Vec<u32>>,
    sum: Vec<u32>,
}

impl Data {
    /// `bytes` per rank, rounded down to whole elements for each rank.
    pub fn new(ranks: usize, bytes: u64, seed: u64) -> Data {
        let mut random = SplitMix64::new(seed ^ 0x6e63_636c);
        let values: Vec<Vec<i64>> =
            (0..ranks).map(|_| (0..PERIOD).map(|_| random.between(-LARGEST, LARGEST)).collect()).collect();
        let bits = |value: i64| (value as f32).to_bits();
        let sum = (0..PERIOD).map(|i| bits(values.iter().map(|v| v[i]).sum())).collect();
        let tables = values.iter().map(|v| v.iter().copied().map(bits).collect()).collect();
        Data { elements: (bytes as usize / 4 / ranks).max(1) * ranks, tables, sum }
    }

    pub fn ranks(&self) -> usize {
        self.tables.len()
    }

    /// Elements of a full buffer, and of one rank's segment.
    pub fn elements(&self) -> usize {
        self.elements
    }
    pub fn segment(&self) -> usize {
        self.elements / self.ranks()
    }
    pub fn bytes(&self) -> usize {
        self.elements * 4
    }

    /// What `rank` sends in every operation.
    pub fn send(&self, rank: usize) -> Vec<u32> {
        self.tables[rank].iter().copied().cycle().take(self.elements).collect()
    }

    /// What each rank adds to the sum at `index`.
    pub fn contributions(&self, index: usize) -> Vec<f32> {
        self.tables.iter().map(|table| f32::from_bits(table[index % PERIOD])).collect()
    }

    /// Elements that `rank` receives.
    pub fn received(&self, operation: Collective) -> usize {
        match operation {
            Collective::ReduceScatter => self.segment(),
            _ => self.elements,
        }
    }

    /// Bytes that count for the bus bandwidth, as nccl-tests counts them: the traffic that each link must at least carry.
    pub fn bus_bytes(&self, operation: Collective) -> f64 {
        let (n, bytes) = (self.ranks() as f64, self.bytes() as f64);
        match operation {
            Collective::AllReduce => 2.0 * (n - 1.0) / n * bytes,
            Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll => (n - 1.0) / n * bytes,
            Collective::SendRecvRing => bytes,
        }
    }

    /// Runs of the receiver's buffer: (first place, length, table, index of the first element in the table's sequence, origin).
    fn runs(&self, operation: Collective, rank: usize) -> Vec<Run<'_>> {
        let (n, segment) = (self.ranks(), self.segment());
        let from = |sender: usize, place: usize, length: usize, first: usize| Run {
            place,
            length,
            table: &self.tables[sender],
            first,
            sender: Some(sender),
        };
        let sum = |length: usize, first: usize| {
            vec![Run { place: 0, length, table: &self.sum, first, sender: None }]
        };
        match operation {
            Collective::AllReduce => sum(self.elements, 0),
            Collective::ReduceScatter => sum(segment, rank * segment),
            Collective::AllGather => (0..n).map(|s| from(s, s * segment, segment, 0)).collect(),
            Collective::AllToAll => (0..n).map(|s| from(s, s * segment, segment, rank * segment)).collect(),
            Collective::SendRecvRing => vec![from((rank + n - 1) % n, 0, self.elements, 0)],
        }
    }

    /// Compares what `rank` received, element by element: the first wrong ones, and how many there are.
    pub fn check(&self, operation: Collective, rank: usize, got: &[u32]) -> (Vec<WrongElement>, u64) {
        let (mut wrong, mut count) = (Vec::new(), 0u64);
        for run in self.runs(operation, rank) {
            let mut at = run.first % PERIOD;
            for (i, got) in got[run.place..run.place + run.length].iter().enumerate() {
                let expected = run.table[at];
                if *got != expected {
                    count += 1;
                    if wrong.len() < MAX_REPORTED {
                        let origin = run.sender.map_or(Origin::Sum(run.first + i), Origin::Rank);
                        wrong.push(WrongElement { index: run.place + i, expected, got: *got, origin });
                    }
                }
                at = if at + 1 == PERIOD { 0 } else { at + 1 };
            }
        }
        (wrong, count)
    }
}

struct Run<'d> {
    place: usize,
    length: usize,
    table: &'d [u32],
    first: usize,
    sender: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a right NCCL would deliver, computed the plain way.
    fn deliver(data: &Data, operation: Collective, rank: usize) -> Vec<u32> {
        let sent: Vec<Vec<u32>> = (0..data.ranks()).map(|r| data.send(r)).collect();
        let (n, c) = (data.ranks(), data.segment());
        let sum = |i: usize| sent.iter().map(|s| f32::from_bits(s[i])).sum::<f32>().to_bits();
        match operation {
            Collective::AllReduce => (0..data.elements()).map(sum).collect(),
            Collective::ReduceScatter => (rank * c..(rank + 1) * c).map(sum).collect(),
            Collective::AllGather => (0..n).flat_map(|s| sent[s][..c].to_vec()).collect(),
            Collective::AllToAll => (0..n).flat_map(|s| sent[s][rank * c..(rank + 1) * c].to_vec()).collect(),
            Collective::SendRecvRing => sent[(rank + n - 1) % n].clone(),
        }
    }

    #[test]
    fn right_results_are_accepted_and_one_flipped_bit_is_found() {
        for ranks in [2, 3, 8] {
            let data = Data::new(ranks, 100_000, 9);
            for operation in Collective::ALL.iter().copied() {
                for rank in 0..ranks {
                    let mut got = deliver(&data, operation, rank);
                    assert_eq!(got.len(), data.received(operation));
                    assert_eq!(data.check(operation, rank, &got), (vec![], 0), "{operation:?} rank {rank}");
                    let at = got.len() - 7;
                    got[at] ^= 1 << 20;
                    let (wrong, count) = data.check(operation, rank, &got);
                    assert_eq!((wrong[0].index, wrong[0].got ^ wrong[0].expected, count), (at, 1 << 20, 1));
                }
            }
        }
    }
}
