//! What Pacemaker says of its cluster, read from `crm_mon --output-as=xml`.
//!
//! # Never here
//! A time that is measured: what started when is read from what the resources themselves left.

/// A cluster as one of its hosts sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The designated controller (DC), Pacemaker's coordinator.
    pub(super) coordinator: Option<String>,
    /// Hosts that are members in full.
    pub(super) online: Vec<String>,
    /// Something failed, or is in doubt.
    pub(super) trouble: Option<String>,
}

/// Reads it. What is not there reads as nobody and nothing.
pub(super) fn read(xml: &str) -> State {
    let mut state = State::default();
    for line in xml.lines().map(str::trim) {
        let of = |name| attribute(line, name);
        let yes = |name| of(name) == Some("true");
        if line.starts_with("<node ") && of("online").is_some() {
            let Some(name) = of("name") else { continue };
            if yes("unclean") {
                state.trouble = Some(format!("{name} is unclean"));
            }
            if yes("online") && !yes("pending") {
                state.online.push(name.to_owned());
            }
            if yes("is_dc") {
                state.coordinator = Some(name.to_owned());
            }
        } else if line.starts_with("<failure ") {
            state.trouble = Some(format!(
                "{} {}",
                of("op_key").unwrap_or("an operation"),
                of("exitstatus").unwrap_or("failed")
            ));
        } else if line.starts_with("<resource ") && yes("failed") {
            state.trouble = Some(format!("{} failed", of("id").unwrap_or("a resource")));
        } else if line.starts_with("<resource ") && !yes("active") {
            state.trouble = Some(format!("{} does not run", of("id").unwrap_or("a resource")));
        }
    }
    state
}

fn attribute<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_their_coordinator_are_read() {
        let xml = r#"<nodes>
    <node name="host-1" id="1" online="true" standby="false" pending="false" unclean="false" is_dc="true" resources_running="2" type="member"/>
    <node name="host-2" id="2" online="true" standby="false" pending="true" unclean="false" is_dc="false" type="member"/>
    <node name="host-3" id="3" online="false" standby="false" pending="false" unclean="true" is_dc="false" type="member"/>
  </nodes>
  <resource id="r1" resource_agent="ocf:mainstay:record" role="Started" active="true" failed="false">
    <node name="host-1" id="1" cached="true"/>
  </resource>"#;
        let state = read(xml);
        assert_eq!(state.coordinator.as_deref(), Some("host-1"));
        assert_eq!(state.online, ["host-1"]);
        assert_eq!(state.trouble.as_deref(), Some("host-3 is unclean"));
        assert_eq!(read(""), State::default());
    }
}
