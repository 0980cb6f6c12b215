//! Mainstay: datastore.
