//! Brokers by URL: `amqp://user:password@host:port/vhost`, `amqps://…`.
//!
//! As RabbitMQ's URI specification has it, with the query parameters of its Erlang client for certificates.

use std::{path::PathBuf, time::Duration};

use crate::{connection::Connection, error::AmqpError};

/// What a URL says. Errors never repeat the URL: it may hold a password.
pub(crate) fn parse(url: &str) -> Result<Connection, AmqpError> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| AmqpError::config("an amqp URL starts with `amqp://` or `amqps://`"))?;
    let tls = match scheme {
        "amqp" => false,
        "amqps" => true,
        // Not shown: what stands in front of a mistyped URL may be a password.
        _ => return Err(AmqpError::config("an amqp URL starts with `amqp://` or `amqps://`")),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // A password may hold an `@` that was not encoded: a host and a vhost cannot.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    if user.is_some_and(|user| user.contains('/')) {
        return Err(AmqpError::config("in the user or password of an amqp URL `/` is written as `%2F`"));
    }
    let (address, vhost) = match place.split_once('/') {
        Some((address, vhost)) => (address, Some(vhost)),
        None => (place, None),
    };
    let (host, port) = host_and_port(address, if tls { 5671 } else { 5672 })?;
    let mut connection = Connection::new(host, port, tls);
    if let Some(vhost) = vhost {
        connection.vhost = vhost_of(vhost)?;
    }
    if let Some(user) = user {
        let (user, password) = user
            .split_once(':')
            .ok_or_else(|| AmqpError::config("the amqp URL has a user but no password"))?;
        connection.user = decode(user, "user")?;
        connection.password = decode(password, "password")?.into();
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        parameter(&mut connection, pair)?;
    }
    Ok(connection)
}

fn host_and_port(address: &str, default: u16) -> Result<(String, u16), AmqpError> {
    let wrong =
        |why: &str| AmqpError::config(format!("the broker of an amqp URL is named as `host:port`: {why}"));
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            // Not shown: with a `?` in a password it would be a part of that.
            let port = port.parse().map_err(|_| wrong("the port is not a number below 65536"))?;
            (host, port)
        }
        _ => (address, default),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(wrong("the host is missing"));
    }
    if host.contains(['#', ',']) || host.chars().any(char::is_whitespace) {
        return Err(wrong(
            "it is one host; in a user or password `?` and `#` are written as `%3F` and `%23`",
        ));
    }
    Ok((host.to_owned(), port))
}

fn vhost_of(path: &str) -> Result<String, AmqpError> {
    let vhost = decode(path, "vhost")?;
    if path.contains('/') {
        return Err(AmqpError::config("the amqp URL names one vhost: a `/` in its name is written as `%2f`"));
    }
    if vhost.is_empty() {
        return Err(AmqpError::config(
            "the vhost of the amqp URL is the empty name: for the default one write `/%2f`, or no `/` at all",
        ));
    }
    if vhost.len() > 255 {
        return Err(AmqpError::config(
            "the vhost of the amqp URL has more than the 255 bytes that AMQP carries",
        ));
    }
    Ok(vhost)
}

fn parameter(connection: &mut Connection, pair: &str) -> Result<(), AmqpError> {
    let (name, value) = pair.split_once('=').ok_or_else(|| {
        AmqpError::config("a query parameter of the amqp URL has no value: write `?name=value`")
    })?;
    let value = decode(value, "value of a query parameter")?;
    let number = || {
        let number = value.parse::<u64>().map_err(|_| {
            AmqpError::config(format!("the query parameter `{name}` of the amqp URL is not a whole number"))
        });
        number.map(|number| number.min(u64::from(u32::MAX)))
    };
    match name {
        "heartbeat" => connection.heartbeat = Duration::from_secs(number()?),
        "connection_timeout" => connection.timeout = Duration::from_millis(number()?),
        "cacertfile" => connection.tls_files(name)?.authority = Some(PathBuf::from(value)),
        "certfile" => connection.tls_files(name)?.certificate = Some(PathBuf::from(value)),
        "keyfile" => connection.tls_files(name)?.key = Some(PathBuf::from(value)),
        // Not shown: with a `?` in a password it would be a part of that.
        _ => {
            return Err(AmqpError::config(
                "a query parameter of the amqp URL is not known: there are `heartbeat` (seconds), \
                 `connection_timeout` (milliseconds), `cacertfile`, `certfile` and `keyfile`",
            ));
        }
    }
    Ok(())
}

fn decode(text: &str, what: &str) -> Result<String, AmqpError> {
    let wrong = || AmqpError::config(format!("the {what} in the amqp URL is not percent-encoded UTF-8"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).ok_or_else(wrong)?;
        // A sign is a digit to the parser.
        let digits = hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(hex, 16).ok().filter(|_| digits).ok_or_else(wrong)?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_enough() {
        let connection = parse("amqp://rabbit").unwrap();
        assert_eq!((&*connection.host, connection.port, &*connection.vhost), ("rabbit", 5672, "/"));
        assert_eq!((&*connection.user, connection.password.show()), ("guest", "guest"));
        assert_eq!(parse("amqps://rabbit").unwrap().port, 5671);
    }

    #[test]
    fn user_password_vhost_and_parameters() {
        let url =
            "amqps://ann:p%40s%3As@h:1/orders%2feu?heartbeat=7&connection_timeout=1500&cacertfile=%2Fca.pem";
        let connection = parse(url).unwrap();
        assert_eq!((&*connection.user, connection.password.show()), ("ann", "p@s:s"));
        assert_eq!((&*connection.vhost, connection.port), ("orders/eu", 1));
        assert_eq!(connection.heartbeat, Duration::from_secs(7));
        assert_eq!(connection.timeout, Duration::from_millis(1500));
        let tls = connection.tls.unwrap();
        assert_eq!(tls.authority.unwrap().to_str(), Some("/ca.pem"));
        assert_eq!(parse("amqp://h/%2f").unwrap().vhost, "/");
    }

    #[test]
    fn an_address_of_version_6_has_its_brackets() {
        assert_eq!(parse("amqp://[::1]:9").map(|c| (c.host, c.port)).unwrap(), ("::1".into(), 9));
        assert_eq!(parse("amqp://[::1]").map(|c| (c.host, c.port)).unwrap(), ("::1".into(), 5672));
    }

    #[test]
    fn mistakes_are_told_without_the_password() {
        for url in [
            "kafka://ann:s3cret@h",
            "ann:s3cret@h",
            "amqp://ann:s3cret@",
            "amqp://ann:s3cret@h:port",
            "amqp://ann:s3cret%@h:1",
            "amqp://ann:s3cret%+f@h:1",
            "amqp://s3cret@h:1",
            "amqp://ann:s3cret@h:1/",
            "amqp://ann:s3cret@h:1/a/b",
            "amqp://ann:s3cret/x@h:1",
            "amqp://ann:s3cret?x@h:1",
            "amqp://ann:s3cret#x@h,i:1",
            "amqp://ann:s3cret@h?verify=none",
            "amqp://ann:s3cret@h?heartbeat=soon",
            "amqp://ann:s3cret@h?cacertfile=/ca.pem",
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.is_config(), "{url}");
            assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
        }
    }
}
