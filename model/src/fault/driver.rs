//! Version of the NVIDIA driver, as far as it decides how a log line is read.

/// A driver version such as `575.57.08`; only the release branch (575) must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverVersion {
    pub branch: u16,
    pub minor: u16,
    pub patch: u16,
}

/// Not a driver version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a driver version such as 570, R575 or 580.65.06")]
pub struct BadDriverVersion(String);

impl std::str::FromStr for DriverVersion {
    type Err = BadDriverVersion;

    fn from_str(text: &str) -> Result<Self, BadDriverVersion> {
        let bad = || BadDriverVersion(text.chars().take(40).collect());
        let trimmed = text.trim();
        let mut parts = trimmed.strip_prefix(['R', 'r']).unwrap_or(trimmed).split('.');
        let mut number = |needed: bool| match parts.next() {
            None if !needed => Ok(0),
            // `parse` alone would take "+5".
            Some(part) if part.bytes().all(|b| b.is_ascii_digit()) => part.parse().map_err(|_| bad()),
            _ => Err(bad()),
        };
        let version = Self { branch: number(true)?, minor: number(false)?, patch: number(false)? };
        // The oldest branch that any of the catalogue's GPUs runs on is 3 digits long: "12.8" is a CUDA version.
        if parts.next().is_some() || !(100..=9999).contains(&version.branch) {
            Err(bad())
        } else {
            Ok(version)
        }
    }
}

impl std::fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}.{:02}", self.branch, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_people_write_and_refuses_others() {
        let v = |branch, minor, patch| DriverVersion { branch, minor, patch };
        for (text, version) in [
            ("575", v(575, 0, 0)),
            ("R570", v(570, 0, 0)),
            (" 580.65.06 ", v(580, 65, 6)),
            ("535.216", v(535, 216, 0)),
        ] {
            assert_eq!(text.parse::<DriverVersion>().unwrap(), version, "{text}");
        }
        for text in ["", "R", "12.8", "575.1.2.3", "575.x", "+575", "99999", "sim", "575."] {
            assert!(text.parse::<DriverVersion>().is_err(), "{text:?} was taken");
        }
    }
}
