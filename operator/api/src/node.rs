//! What we put on a blade's node, and nothing else: a taint, a cordon with its mark, and a note of whose they are.

/// Key of our taint; the value says why (phase or reason of the quarantine). Effect `NoSchedule`.
pub const TAINT: &str = "whetstone.dev/withheld";
/// Value of the taint with which a blade's node registers, before we know anything of it.
pub const UNPROVEN: &str = "unproven";
/// `true` = the cordon of this node is ours. A cordon without it is a person's, and stays.
pub const CORDONED: &str = "whetstone.dev/cordoned";
/// Serial, reason and case: whose taint and cordon these are.
pub const NOTE: &str = "whetstone.dev/withheld-by";
/// Label: name of the blade.
pub const BLADE: &str = "whetstone.dev/blade";
/// Label `true`: this node is no blade; Whetstone leaves it alone.
pub const UNMANAGED: &str = "whetstone.dev/unmanaged";
