//! From what people wrote to what the planner takes: parsed here, once.

use std::str::FromStr;

use whetstone_model::ids::{BladeName, DomainName, RackName, Serial, TrancheName};
use whetstone_model::lifecycle::Owner;

use crate::{Blade, ExpectedBlade, Tranche};

/// A spec that cannot be understood, although the apiserver took it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct SpecError {
    /// Path of the field: `spec.owner`.
    pub field: String,
    pub what: String,
}

pub(crate) fn parse<T: FromStr>(field: &str, text: &str) -> Result<T, SpecError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| SpecError { field: field.to_owned(), what: e.to_string() })
}

fn optional<T: FromStr>(field: &str, text: Option<&String>) -> Result<Option<T>, SpecError>
where
    T::Err: std::fmt::Display,
{
    text.map(|text| parse(field, text)).transpose()
}

impl Blade {
    pub fn serial(&self) -> Result<Serial, SpecError> {
        parse("spec.serial", &self.spec.serial)
    }
    pub fn blade_name(&self) -> Result<BladeName, SpecError> {
        parse("metadata.name", self.metadata.name.as_deref().unwrap_or(""))
    }
    pub fn tranche(&self) -> Result<Option<TrancheName>, SpecError> {
        optional("spec.tranche", self.spec.tranche.as_ref())
    }
    pub fn rack(&self) -> Result<Option<RackName>, SpecError> {
        optional("spec.rack", self.spec.rack.as_ref())
    }
    pub fn domain(&self) -> Result<Option<DomainName>, SpecError> {
        optional("spec.nvlinkDomain", self.spec.nvlink_domain.as_ref())
    }
    pub fn owner(&self) -> Result<Option<Owner>, SpecError> {
        optional("spec.owner", self.spec.owner.as_ref())
    }
    /// Name of the blade's node.
    pub fn node_name(&self) -> &str {
        self.spec.node_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or("")
    }
}

impl Tranche {
    pub fn tranche_name(&self) -> Result<TrancheName, SpecError> {
        parse("metadata.name", self.metadata.name.as_deref().unwrap_or(""))
    }
    pub fn owner(&self) -> Result<Option<Owner>, SpecError> {
        optional("spec.owner", self.spec.owner.as_ref())
    }
}

impl ExpectedBlade {
    /// Its name: the one given, or the serial made to fit a name.
    pub fn blade_name(&self) -> Result<BladeName, SpecError> {
        match &self.name {
            Some(name) => parse("spec.blades.name", name),
            None => parse("spec.blades.serial", &self.serial.to_ascii_lowercase().replace(['_', '.'], "-")),
        }
    }
    pub fn serial(&self) -> Result<Serial, SpecError> {
        parse("spec.blades.serial", &self.serial)
    }
    pub fn rack(&self) -> Result<Option<RackName>, SpecError> {
        optional("spec.blades.rack", self.rack.as_ref())
    }
    pub fn domain(&self) -> Result<Option<DomainName>, SpecError> {
        optional("spec.blades.nvlinkDomain", self.nvlink_domain.as_ref())
    }
}
