//! What is wrong in a launch's results: which blocks, on which SMs, how many bits.

use std::collections::{BTreeMap, BTreeSet};

use whetstone_burnin::exact::{WrongElement, wrong_bits};

use crate::cuda::driver::Tile;

/// How a launch's tiles stand to the one right digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    Right,
    /// Blocks that differ (in digest, or in an iteration before the last).
    Some(Vec<usize>),
    /// Every block agrees with every other, and none with the reference: no silicon fails like that. Either
    /// the operands changed in memory or the kernel does not do what it should on this chip.
    AllAlike,
}

/// Holds the tiles against the digest that they must have.
pub fn check(tiles: &[Tile], expected: u64) -> Check {
    let wrong: Vec<usize> =
        (0..tiles.len()).filter(|i| tiles[*i].digest != expected || tiles[*i].mismatches != 0).collect();
    let sms: BTreeSet<u32> = tiles.iter().map(|t| t.smid).collect();
    let alike = tiles.iter().all(|t| t.digest == tiles[0].digest && t.mismatches == 0);
    match wrong.len() {
        0 => Check::Right,
        n if n == tiles.len() && alike && sms.len() > 1 => Check::AllAlike,
        _ => Check::Some(wrong),
    }
}

/// The digest that most blocks have, and a block that has it. On a tie the smaller digest, so that the answer does not
/// depend on the order.
pub fn majority(tiles: &[Tile]) -> Option<(u64, usize)> {
    let mut counts: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for (block, tile) in tiles.iter().enumerate() {
        counts.entry(tile.digest).or_insert((0, block)).0 += 1;
    }
    let (digest, (_, block)) =
        counts.into_iter().max_by_key(|(digest, (n, _))| (*n, std::cmp::Reverse(*digest)))?;
    Some((digest, block))
}

/// The blocks whose digest is not the majority's, or that differed between iterations.
pub fn minority(tiles: &[Tile], majority: u64) -> Vec<usize> {
    (0..tiles.len()).filter(|i| tiles[*i].digest != majority || tiles[*i].mismatches != 0).collect()
}

/// All that one layer of the test found wrong in one format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    pub tiles: u64,
    pub elements: u64,
    pub bits: u64,
    /// Elements that differed between two iterations of the same block.
    pub unsteady: u64,
    pub sms: BTreeSet<u32>,
    /// All bits that were ever flipped.
    pub mask: u64,
    /// The first wrong element, for the report.
    first: Option<(WrongElement, u32)>,
}

impl Damage {
    pub fn is_none(&self) -> bool {
        self.tiles == 0
    }

    /// Books a wrong tile: its SM, its wrong elements if they were looked at, its unsteady ones.
    pub fn add(&mut self, smid: u32, wrong: &[WrongElement], unsteady: u32) {
        self.tiles += 1;
        self.elements += wrong.len() as u64;
        self.bits += u64::from(wrong_bits(wrong));
        self.unsteady += u64::from(unsteady);
        self.sms.insert(smid);
        self.mask |= wrong.iter().fold(0, |mask, w| mask | w.xor());
        self.first = self.first.or_else(|| wrong.first().map(|w| (*w, smid)));
    }

    /// `3 wrong bits in 2 elements, all on SM 41`.
    pub fn describe(&self) -> String {
        let plural = |n: u64, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        let what = match (self.elements, self.unsteady) {
            (0, 0) => plural(self.tiles, "wrong tile"),
            (0, unsteady) => format!("{} that differed between iterations", plural(unsteady, "element")),
            (elements, _) => format!("{} in {}", plural(self.bits, "wrong bit"), plural(elements, "element")),
        };
        let place = match self.sms.len() {
            1 => format!("all on SM {}", self.sms.iter().next().unwrap_or(&0)),
            n if n <= 8 => {
                let list: Vec<String> = self.sms.iter().map(u32::to_string).collect();
                format!("on SMs {}", list.join(", "))
            }
            n => format!("on {n} SMs"),
        };
        format!("{what}, {place}")
    }

    /// The first wrong element with its bits, if one was compared: `element (1, 1) on SM 41 is …`.
    pub fn first(&self, columns: usize) -> Option<String> {
        self.first.map(|(w, smid)| {
            format!(
                "element ({}, {}) on SM {smid} is {:#x}, must be {:#x}, xor {:#x}",
                w.index / columns,
                w.index % columns,
                w.got,
                w.expected,
                w.xor()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(smid: u32, digest: u64) -> Tile {
        Tile { smid, digest, ..Tile::default() }
    }

    #[test]
    fn one_wrong_block_is_named_and_all_alike_is_no_silicon() {
        let tiles = [tile(0, 7), tile(1, 8), tile(2, 7)];
        assert_eq!(check(&tiles, 7), Check::Some(vec![1]));
        assert_eq!(check(&[tile(0, 9), tile(1, 9)], 7), Check::AllAlike);
        assert_eq!(check(&[tile(0, 7), tile(1, 7)], 7), Check::Right);
        // One SM only: it cannot be told from a broken kernel by its sisters, so it is wrong.
        assert_eq!(check(&[tile(0, 9)], 7), Check::Some(vec![0]));
        let unsteady = [tile(0, 7), Tile { mismatches: 2, ..tile(1, 7) }];
        assert_eq!(check(&unsteady, 7), Check::Some(vec![1]));
    }

    #[test]
    fn the_majority_decides_where_there_is_no_reference() {
        let tiles = [tile(0, 5), tile(1, 4), tile(2, 4), tile(3, 6)];
        assert_eq!(majority(&tiles), Some((4, 1)));
        assert_eq!(minority(&tiles, 4), [0, 3]);
        assert_eq!(majority(&[]), None);
    }

    #[test]
    fn the_text_names_bits_elements_and_sm() {
        let mut damage = Damage::default();
        let wrong = |index, xor: u64| WrongElement { index, expected: 0x10, got: 0x10 ^ xor };
        damage.add(41, &[wrong(65, 0b11), wrong(3, 1 << 30)], 0);
        assert_eq!(damage.describe(), "3 wrong bits in 2 elements, all on SM 41");
        assert_eq!(damage.first(64).unwrap(), "element (1, 1) on SM 41 is 0x13, must be 0x10, xor 0x3");
        damage.add(7, &[], 0);
        assert!(damage.describe().contains("on SMs 7, 41"));
    }
}
