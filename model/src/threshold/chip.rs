//! Which chip a product name speaks of, so that SKUs of one chip or generation can be compared.

/// A GPU chip as product names call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// Such as `H100`; variants of one chip (`H100NVL`) have the same.
    pub name: &'static str,
    /// Such as `hopper`.
    pub generation: &'static str,
}

/// Generation, chip, and the other words that mean it, or a sister so like it that limits compare.
const CHIPS: &[(&str, &str, &[&str])] = &[
    ("kepler", "K8", &[]),
    ("kepler", "K10", &[]),
    ("kepler", "K20", &["K20C", "K20M", "K20X", "K20XM"]),
    ("kepler", "K40", &["K40C", "K40D", "K40M", "K40S", "K40T"]),
    ("kepler", "K80", &["102F"]),
    ("maxwell", "M4", &[]),
    ("maxwell", "M6", &[]),
    ("maxwell", "M10", &[]),
    ("maxwell", "M40", &[]),
    ("maxwell", "M60", &["TITAN"]),
    ("maxwell", "M5000", &[]),
    ("maxwell", "M6000", &[]),
    ("pascal", "P4", &[]),
    ("pascal", "P6", &[]),
    ("pascal", "P10", &[]),
    ("pascal", "P40", &[]),
    ("pascal", "P100", &["GP100"]),
    ("volta", "V100", &["V100S", "GV100"]),
    ("turing", "T4", &["T4G"]),
    ("turing", "T10", &[]),
    ("turing", "T40", &[]),
    ("ampere", "A2", &[]),
    ("ampere", "A10", &["A10C", "A10G", "A10M"]),
    ("ampere", "A16", &[]),
    ("ampere", "A30", &["A30LC"]),
    ("ampere", "A40", &[]),
    ("ampere", "A100", &["GA100"]),
    ("ampere", "A800", &["AX800"]),
    ("ampere", "A2000", &[]),
    ("ampere", "A4000", &[]),
    ("ampere", "A5000", &[]),
    ("ampere", "A6000", &[]),
    ("ada", "L2", &[]),
    ("ada", "L4", &[]),
    ("ada", "L20", &["L20A"]),
    ("ada", "L30", &[]),
    ("ada", "L40", &[]),
    ("ada", "L40S", &[]),
    ("hopper", "H20", &["H20A", "H20B"]),
    ("hopper", "H100", &["H100NVL", "GH100"]),
    ("hopper", "H200", &["H200NVL"]),
    ("hopper", "H800", &[]),
    ("hopper", "GH200", &[]),
    ("blackwell", "B100", &[]),
    ("blackwell", "B200", &[]),
    ("blackwell", "B300", &[]),
    ("blackwell", "GB200", &[]),
    ("blackwell", "GB300", &[]),
    ("blackwell", "GB203", &[]),
    ("blackwell", "RTX6000D", &[]),
    ("cdna", "MI100", &[]),
    ("cdna", "MI200", &["MI210", "MI250", "MI250X"]),
    ("cdna", "MI300", &["MI300X", "MI300A", "MI325X"]),
];

impl Chip {
    /// The chip that a product or SKU name speaks of: the first of its words that is known.
    pub fn of(name: &str) -> Option<Chip> {
        name.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| {
            let is = |known: &&str| known.eq_ignore_ascii_case(word);
            CHIPS
                .iter()
                .find(|(_, chip, others)| is(chip) || others.iter().any(is))
                .map(|(generation, name, _)| Chip { name, generation })
        })
    }

    /// Our own profile whose GPUs have this chip, if there is one.
    pub fn profile(self) -> Option<&'static str> {
        match self.name {
            "A100" => Some("hgx-a100"),
            "H100" => Some("hgx-h100"),
            "H200" => Some("hgx-h200"),
            "B200" => Some("hgx-b200"),
            "GB200" => Some("gb200-nvl72"),
            "GB300" => Some("gb300-nvl72"),
            "L40S" => Some("l40s"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_products_skus_and_virtual_machines() {
        for (name, chip) in [
            ("NVIDIA H100 80GB HBM3", Some("H100")),
            ("nd96isr_h200_v5", Some("H200")),
            ("hgx-b200", Some("B200")),
            ("GB300 NVL Bianca", Some("GB300")),
            ("A100-SXM4-80GB-147F", Some("A100")),
            ("H20_NVL16", Some("H20")),
            ("NVIDIA L40S", Some("L40S")),
            ("Nvidia L40", Some("L40")),
            ("hb120rs_v2", None),
            ("PG502-20x", None),
            ("", None),
        ] {
            assert_eq!(Chip::of(name).map(|c| c.name), chip, "{name}");
        }
    }

    #[test]
    fn the_profile_of_a_chip_exists_and_is_of_that_chip() {
        let table = super::super::Table::built_in().unwrap();
        for (_, name, _) in CHIPS {
            let chip = Chip::of(name).unwrap();
            assert_eq!(chip.name, *name, "the words of two chips overlap");
            if let Some(sku) = chip.profile() {
                let profile = table.profile(sku).unwrap();
                assert_eq!(Chip::of(&profile.gpu_name).unwrap(), chip);
                assert_eq!(profile.family, chip.generation);
            }
        }
    }
}
