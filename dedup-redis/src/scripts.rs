//! The Lua scripts: one for each atomic step that no native command can do.

use std::sync::LazyLock;

use redis::{Cmd, Script, cmd};

/// One script and the hash it is called by.
#[derive(Debug)]
pub(crate) struct Lua {
    source: &'static str,
    hash: LazyLock<String>,
}

macro_rules! lua {
    ($file:literal) => {
        lua!(@ concat!(include_str!("lua/record.lua"), "\n", include_str!($file)))
    };
    (@ $source:expr) => {{
        const SOURCE: &str = $source;
        Lua { source: SOURCE, hash: LazyLock::new(|| Script::new(SOURCE).get_hash().to_owned()) }
    }};
}

pub(crate) static CLAIM: Lua = lua!("lua/claim.lua");
pub(crate) static RESOLVE: Lua = lua!("lua/resolve.lua");
pub(crate) static RENEW: Lua = lua!("lua/renew.lua");

pub(crate) static PARK: Lua = lua!(@ include_str!("lua/park.lua"));

pub(crate) const COUNT: usize = 4;

/// Commands that make the server know all scripts.
pub(crate) fn load_commands() -> [Cmd; COUNT] {
    [&CLAIM, &RESOLVE, &RENEW, &PARK].map(|lua| {
        let mut load = cmd("SCRIPT");
        load.arg("LOAD").arg(lua.source);
        load
    })
}

impl Lua {
    /// A call on one key, to which arguments are added. `whole` sends the source, for a server that does not know the
    /// script: it knows it from then on.
    pub(crate) fn call(&self, whole: bool, key: &[u8]) -> Cmd {
        let (name, script) = if whole { ("EVAL", self.source) } else { ("EVALSHA", self.hash.as_str()) };
        let mut call = Cmd::with_capacity(12, 192);
        call.arg(name).arg(script).arg(1).arg(key);
        call
    }
}
