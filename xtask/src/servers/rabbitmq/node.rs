//! How the programs of RabbitMQ are called.

use crate::servers::{ServerError, process};
use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// Where the programs are. The ones of the same names in `PATH` insist on the user `rabbitmq`.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// Every node has a port mapper of its own, so one name does for all.
const NAME: &str = "rabbit@localhost";
/// An address as an Erlang term.
const LOOPBACK: &str = "{127,0,0,1}";

/// `plain` and `tls` are for clients, `node` for `rabbitmqctl`, which asks the port mapper for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) plain: u16,
    pub(super) tls: u16,
    pub(super) node: u16,
    pub(super) mapper: u16,
}

/// A node's place on this machine.
pub(super) struct Node {
    pub(super) ports: Ports,
    pub(super) dir: PathBuf,
    pub(super) user: String,
    pub(super) password: String,
}

/// Leaves the password out.
impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("ports", &self.ports)
            .field("dir", &self.dir)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Writes what the node reads at its start.
    pub(super) fn write_files(&self, config: &str, advanced: &str) -> Result<(), ServerError> {
        let server = program("rabbitmq-server")?;
        let write = || {
            self.link_application(Path::new(&server))?;
            fs::write(self.dir.join("rabbitmq.conf"), config)?;
            fs::write(self.dir.join("advanced.config"), advanced)?;
            fs::write(self.dir.join("enabled_plugins"), "[].\n")?;
            // Erlang refuses a cookie that others may read. Nobody but this machine's users can get at the port.
            let mut cookie = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(self.dir.join(".erlang.cookie"))?;
            cookie.write_all(b"consumer-tests")
        };
        write().map_err(|error: io::Error| {
            ServerError::io("the configuration of rabbitmq could not be written", error)
        })
    }

    /// Makes a folder of plugins in which RabbitMQ itself is alone. From the folder it comes with, it would read the
    /// configuration schemas of all plugins, wanted or not, and take half a second more to start.
    fn link_application(&self, server: &Path) -> io::Result<()> {
        let plugins = self.dir.join("plugins");
        fs::create_dir(&plugins)?;
        // …/rabbitmq_server-3.10.8/sbin/rabbitmq-server
        let server = server.canonicalize()?;
        let home = server.ancestors().nth(2).unwrap_or(&server);
        for entry in fs::read_dir(home.join("plugins"))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("rabbit-") {
                symlink(entry.path(), plugins.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// The URL of the default virtual host, `/`.
    pub(super) fn url(&self, scheme: &str, port: u16) -> String {
        let (user, password) = (encoded(&self.user), encoded(&self.password));
        format!("{scheme}://{user}:{password}@127.0.0.1:{port}/%2f")
    }

    pub(super) fn port_mapper_command(&self) -> Vec<String> {
        let port = self.ports.mapper.to_string();
        self.only_with(&[], &["epmd", "-address", "127.0.0.1", "-port", &port])
    }

    /// The server, as one process.
    pub(super) fn command(&self) -> Result<Vec<String>, ServerError> {
        let Ports { node, .. } = self.ports;
        let dir = |name: &str| self.dir.join(name).display().to_string();
        // Named by these arguments, it need not be named by RabbitMQ, which would start two more Erlang machines for
        // that and try the port on all interfaces.
        let name = format!(
            "-sname {NAME} -kernel inet_dist_use_interface {LOOPBACK} inet_dist_listen_min {node} inet_dist_listen_max {node}"
        );
        let variables = [
            ("RABBITMQ_CONFIG_FILE", dir("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", dir("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", dir("enabled_plugins")),
            ("RABBITMQ_PLUGINS_DIR", dir("plugins")),
            ("RABBITMQ_MNESIA_BASE", dir("data")),
            ("RABBITMQ_LOG_BASE", dir("logs")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_DIST_PORT", node.to_string()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("+S 2:2 {name}")),
            // Else the shell stays as the parent of the server, and a SIGKILL would reach only the shell.
            ("RUNNING_UNDER_SYSTEMD", "true".to_owned()),
        ];
        Ok(self.only_with(&variables, &[&program("rabbitmq-server")?]))
    }

    /// The command that runs `words` with these variables, the common ones, and no others. Dumps of a crash are written
    /// to the current folder, so that is ours.
    fn only_with(&self, variables: &[(&'static str, String)], words: &[&str]) -> Vec<String> {
        let mut command = vec!["env".to_owned(), "-i".to_owned(), format!("--chdir={}", self.dir.display())];
        let all = self.environment();
        command.extend(all.iter().chain(variables).map(|(name, value)| format!("{name}={value}")));
        command.extend(words.iter().map(|&word| word.to_owned()));
        command
    }

    pub(super) fn ctl(&self, arguments: &[&str]) -> Result<String, ServerError> {
        let mut ctl = Command::new(program("rabbitmqctl")?);
        ctl.env_clear().envs(self.environment());
        // It takes no connections itself.
        ctl.env("RABBITMQ_CTL_ERL_ARGS", "-dist_listen false");
        let answer = process::output(ctl.arg("--silent").args(arguments))?;
        Ok(answer.strip_suffix('\n').unwrap_or(&answer).to_owned())
    }

    /// What the server and `rabbitmqctl` share.
    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PATH", env::var("PATH").unwrap_or_default()),
            ("LANG", "C.UTF-8".to_owned()),
            // The cookie is there.
            ("HOME", self.dir.display().to_string()),
            ("RABBITMQ_NODENAME", NAME.to_owned()),
            // Not what the machine's administrator has set for the machine's own server.
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_EPMD_PORT", self.ports.mapper.to_string()),
            // A port mapper started by Erlang would stay for ever.
            ("ERL_FLAGS", "-start_epmd false".to_owned()),
        ]
    }
}

fn program(name: &str) -> Result<String, ServerError> {
    let path = Path::new(PROGRAMS).join(name);
    if path.is_file() {
        return Ok(path.display().to_string());
    }
    let missing = io::Error::new(io::ErrorKind::NotFound, "not installed");
    Err(ServerError::io(format!("{name} could not be started"), missing))
}

/// A user or password as a part of a URL.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node {
            ports: Ports { plain: 1, tls: 2, node: 3, mapper: 4 },
            dir: "/x".into(),
            user: "ann".into(),
            password: "p/@ss:%".into(),
        }
    }

    #[test]
    fn a_password_is_encoded_in_the_url() {
        assert_eq!(node().url("amqp", 1), "amqp://ann:p%2F%40ss%3A%25@127.0.0.1:1/%2f");
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let shown = format!("{:?}", node());
        assert!(shown.contains("ann") && !shown.contains("p/@ss"), "{shown}");
    }
}
