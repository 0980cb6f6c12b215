//! Errors as people read them: what went wrong, where, and what to do about it.

use serde_json::json;
use std::fmt;
use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    what: String,
    place: Option<String>,
    remedy: Option<String>,
    interrupted: bool,
}

/// A result that a user may see.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure of which only this is known.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            place: None,
            remedy: None,
            interrupted: false,
        }
    }

    /// Ctrl-C, SIGTERM or SIGHUP came: no fault, but an end.
    pub(crate) fn interrupted() -> Self {
        Self {
            interrupted: true,
            ..Self::new("interrupted")
        }
    }

    /// Whether somebody ended it on purpose.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Adds where it happened.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// Adds what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// It on one line, without the place: for a sentence about something else.
    pub(crate) fn one_line(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{} ({remedy})", self.what),
            None => self.what.clone(),
        }
    }

    /// Prints it on standard error and gives the exit code of a failed command.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        use std::io::Write;
        let mut err = anstream::stderr();
        let written = if json {
            let value = json!({ "error": self.what, "place": self.place, "remedy": self.remedy });
            writeln!(err, "{value}")
        } else {
            let red = crate::ui::Tone::Bad.style();
            writeln!(err, "{red}error:{red:#} {self}")
        };
        // Nobody is left to be told when standard error is closed.
        drop(written);
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n    at: {place}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\nremedy: {remedy}")?;
        }
        Ok(())
    }
}

/// Turns library errors into failures with a sentence before them.
pub(crate) trait Context<T> {
    /// Says what was being done.
    ///
    /// # Errors
    /// The same error as a [`Failure`], `what` before it.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let mut text = format!("{what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            Failure::new(text)
        })
    }
}
