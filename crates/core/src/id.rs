//! Identities: of hosts, VMs, datastores, boots, agent instances, lock generations, operations.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Longest id of a host, VM or datastore in bytes; longer ones are refused where they come in.
pub const ID_MAX_BYTES: usize = 64;

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("an id must not be empty")]
    Empty,
    /// The text is longer than [`ID_MAX_BYTES`].
    #[error("id \"{0}\" is longer than 64 bytes")]
    TooLong(String),
    /// The text has a character that is not allowed in an id (ids become file names).
    #[error(
        "id \"{0}\" may have letters, digits, '-', '_' and '.' only, and must not begin with '.'"
    )]
    Character(String),
    /// The text would make a record's file name that means something else.
    #[error("id \"{0}\" is reserved: ids must not begin with \"protectedlist\" or hold \".lock.\"")]
    Reserved(String),
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > ID_MAX_BYTES {
        return Err(IdError::TooLong(text.into()));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.starts_with('.') || !text.chars().all(good) {
        return Err(IdError::Character(text.into()));
    }
    if text.starts_with("protectedlist") || text.contains(".lock.") {
        return Err(IdError::Reserved(text.into()));
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl Ord for $name {
            /// By bytes. Copies of one id are equal without a look at them, which maps do again and again.
            fn cmp(&self, other: &Self) -> core::cmp::Ordering {
                if Arc::ptr_eq(&self.0, &other.0) {
                    return core::cmp::Ordering::Equal;
                }
                self.0.cmp(&other.0)
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $name {
            /// Checks and takes a text as an id.
            ///
            /// # Errors
            /// [`IdError`] when it is empty, too long or has a character that a file name may not have.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().into()
            }
        }

        impl core::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// A host's managed object id (MOID), such as `host-42`. Its byte order decides ties in elections:
    /// `host-99` is above `host-100` (seed "VMware vSphere High Availability Basics").
    HostId
}
text_id! {
    /// A virtual machine's id, such as `vm-7`.
    VmId
}
text_id! {
    /// A datastore's id, such as `ds-1`.
    DatastoreId
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number_id! {
    /// A host's boot: random, new with each start of its operating system. Names the holder of a lock
    /// (safety rule H16): all processes of an earlier boot are gone.
    BootId
}
number_id! {
    /// One start of an agent process: random. Heartbeats carry it so that a value never recurs.
    InstanceId
}
number_id! {
    /// A lock's generation. Grows by one with each swap; none is ever used twice.
    Generation
}
number_id! {
    /// A random number that tells one swap attempt from every other.
    Nonce
}
number_id! {
    /// One requested effect; its completion carries the same number.
    OpId
}

impl Generation {
    /// The highest generation that a record's file name can have: sixteen digits. A lock that is swapped
    /// a thousand times a second comes there after 300,000 years.
    pub const MAX: Self = Self(9_999_999_999_999_999);

    /// The generation that a swap from this one makes. Those above [`Generation::MAX`] are refused where
    /// they are read, so that it never overflows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Who holds a lock: a host in one of its boots.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// The host.
    pub host: HostId,
    /// The boot in which it took the lock.
    pub boot: BootId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        assert_eq!(HostId::new(""), Err(IdError::Empty));
        assert!(matches!(HostId::new("../x"), Err(IdError::Character(_))));
        assert!(matches!(VmId::new("a/b"), Err(IdError::Character(_))));
        assert!(matches!(
            VmId::new(&"a".repeat(65)),
            Err(IdError::TooLong(_))
        ));
        assert!(VmId::new("vm-7").is_ok());
    }

    #[test]
    fn ids_that_would_be_taken_for_another_record_are_refused() {
        for text in ["protectedlist", "protectedlist.1", "vm.lock.5", "a.lock.b"] {
            assert!(
                matches!(VmId::new(text), Err(IdError::Reserved(_))),
                "{text}"
            );
        }
        assert!(VmId::new("vm.lock").is_ok());
    }

    #[test]
    fn host_99_is_lexically_above_host_100() {
        assert!(HostId::new("host-99").expect("id") > HostId::new("host-100").expect("id"));
    }
}
