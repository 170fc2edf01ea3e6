//! Options of a PostgreSQL server, and the making of its data folder.

use super::{Cluster, Postgres, programs};
use crate::servers::{
    Certificates, ServerCertificate, ServerError, free_port, process, process::Slot, scratch::Scratch,
};
use std::{
    fmt, fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::Command,
};

/// Options of a [`Postgres`] to be started.
#[derive(Clone, Default)]
#[must_use]
pub struct PostgresBuilder {
    options: Vec<(String, String)>,
    password: Option<String>,
    tls: bool,
    server_certificate: ServerCertificate,
}

/// Leaves out the password and the values of options.
impl fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.options.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("PostgresBuilder")
            .field("options", &names)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl PostgresBuilder {
    /// Sets a parameter of `postgresql.conf`, such as `("max_connections", "20")`, over ours if we set it too.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((name.into(), value.into()));
        self
    }

    /// Asks clients for a password (letters and digits). [`Postgres::url`] has it.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Takes TLS connections too. [`Postgres::url`] asks for that, [`Postgres::certificates`] has the files.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// What a server with TLS shows to its clients. Default: a certificate that is as it should be.
    pub fn server_certificate(mut self, kind: ServerCertificate) -> Self {
        self.server_certificate = kind;
        self
    }

    /// Makes the data folder, starts the server and waits until it answers.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, refuses an option, or is not ready within 60 s. Not retried, but for a port that
    /// was taken meanwhile (once).
    pub fn start(self) -> Result<Postgres, ServerError> {
        match self.try_start() {
            Err(error) if error.is_clash() => self.try_start(),
            outcome => outcome,
        }
    }

    fn try_start(&self) -> Result<Postgres, ServerError> {
        let programs = programs()?;
        let port = free_port().map_err(|error| ServerError::io("no port for postgres", error))?;
        let scratch = Scratch::new()?;
        let failed = |error| ServerError::io("the folder of postgres could not be made", error);
        let certificates = self.tls.then(|| Certificates::make(scratch.path(), self.server_certificate));
        let certificates = certificates.transpose()?;
        let home = scratch.path().join("postgres");
        let is_root = fs::metadata(scratch.path()).map_err(failed)?.uid() == 0;
        let cluster = Cluster {
            programs,
            data: home.join("data"),
            options: self.all_options(port, &home),
            port,
            password: self.password.clone(),
            is_root,
        };
        let owner = is_root.then(postgres_user).transpose()?;
        self.fill(&home, scratch.path(), certificates.as_ref(), owner).map_err(failed)?;
        self.init(&cluster, &home)?;
        let process = Slot::new("postgres", scratch.path().join("log"));
        let postgres = Postgres { process, cluster, certificates, _scratch: scratch };
        postgres.start_again()?;
        Ok(postgres)
    }

    fn all_options(&self, port: u16, home: &Path) -> Vec<(String, String)> {
        let mut options = Vec::new();
        let mut set = |name: &str, value: &str| options.push((name.to_owned(), value.to_owned()));
        set("listen_addresses", "127.0.0.1");
        set("port", &port.to_string());
        set("unix_socket_directories", "");
        set("max_connections", "200");
        if self.tls {
            set("ssl", "on");
            set("ssl_cert_file", &home.join("server.crt").display().to_string());
            set("ssl_key_file", &home.join("server.key").display().to_string());
        }
        options.extend(self.options.iter().cloned());
        options
    }

    /// A folder of the user who runs the server, with what that user has to read.
    fn fill(
        &self,
        home: &Path,
        parent: &Path,
        certificates: Option<&Certificates>,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()> {
        fs::create_dir(home)?;
        let mut files = Vec::new();
        if let Some(password) = &self.password {
            fs::write(home.join("password"), password)?;
            files.push(home.join("password"));
        }
        if let Some(certificates) = certificates {
            fs::copy(certificates.server_certificate(), home.join("server.crt"))?;
            fs::copy(certificates.server_key(), home.join("server.key"))?;
            files.extend([home.join("server.crt"), home.join("server.key")]);
        }
        for file in &files {
            fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        }
        if let Some((user, group)) = owner {
            // That user has to get through it.
            fs::set_permissions(parent, fs::Permissions::from_mode(0o711))?;
            for path in files.iter().map(|file| file.as_path()).chain([home]) {
                chown(path, Some(user), Some(group))?;
            }
        }
        Ok(())
    }

    fn init(&self, cluster: &Cluster, home: &Path) -> Result<(), ServerError> {
        let data = cluster.data.display().to_string();
        let mut words = vec![cluster.program("initdb"), "--pgdata".to_owned(), data];
        // What it writes need not survive the machine; what the server writes later is written with care.
        let fixed =
            ["--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"];
        words.extend(fixed.map(str::to_owned));
        if self.password.is_some() {
            words.extend(["--auth=scram-sha-256".to_owned()]);
            words.push(format!("--pwfile={}", home.join("password").display()));
        } else {
            words.push("--auth=trust".to_owned());
        }
        let words = cluster.as_server(words);
        process::output(Command::new(&words[0]).args(&words[1..]).current_dir("/")).map(drop)
    }
}

/// User and group of the system's user `postgres`.
fn postgres_user() -> Result<(u32, u32), ServerError> {
    let number = |option: &str| {
        let told = process::output(Command::new("id").args([option, "postgres"]))?;
        told.trim().parse().map_err(|_| ServerError::failed("`id` gives no number"))
    };
    Ok((number("-u")?, number("-g")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_the_password() {
        let shown = format!("{:?}", Postgres::builder().password("s3cret").option("work_mem", "64kB"));
        assert!(shown.contains("work_mem") && !shown.contains("s3cret"), "{shown}");
    }
}
