//! Names and numbers of the things that a site keeps books about, checked where they come in.

use serde::{Deserialize, Serialize};

/// A text that is no valid name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not {rule}")]
pub struct BadName {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

impl BadName {
    fn new(kind: &'static str, text: &str, rule: &'static str) -> Self {
        Self { kind, text: text.chars().take(80).collect(), rule }
    }
}

/// A DNS label (RFC 1123): what Kubernetes takes as a name in every place.
fn is_label(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_serial(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn new(text: impl Into<String>) -> Result<Self, BadName> {
                let text = text.into();
                if $check(&text) { Ok(Self(text)) } else { Err(BadName::new($kind, &text, $rule)) }
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }
        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// What a blade is called; also its object's name and, unless said otherwise, its node's.
    BladeName, "blade name", is_label, "1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends"
}
name! {
    /// What the maker called a blade. It never changes; a name, a rack and a tranche may. Fits a Kubernetes label.
    Serial, "serial", is_serial, "1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
}
name! {
    /// A delivery.
    TrancheName, "tranche name", is_label, "1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends"
}
name! {
    /// A rack of the site.
    RackName, "rack name", is_serial, "1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
}
name! {
    /// GPUs joined by NVLink: one server, or a rack of 72.
    DomainName, "NVLink domain", is_serial, "1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A burn-in run of one blade; counts up over the whole site, so a later run has a greater number.
    RunId
}
number! {
    /// A case; counts up over the whole site.
    CaseId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_come_in() {
        for good in ["b-003", "a", "0", &"x".repeat(63)] {
            assert!(BladeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "B-003", "-a", "a-", "a_b", "a b", &"x".repeat(64), "ä"] {
            assert!(BladeName::new(bad).is_err(), "{bad}");
        }
        for good in ["1655123000042", "SN.7_a-B"] {
            assert!(Serial::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "..", "a\n", "-a", &"9".repeat(64)] {
            assert!(Serial::new(bad).is_err(), "{bad}");
        }
        let error = serde_json::from_str::<BladeName>("\"A\"").unwrap_err().to_string();
        assert!(error.starts_with("blade name \"A\" is not 1 to 63"), "{error}");
    }
}
