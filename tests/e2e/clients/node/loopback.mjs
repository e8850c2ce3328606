// Loaded before a script: no client learns the address of another machine.
import dns from 'node:dns'

const lookup = dns.lookup
dns.lookup = (host, ...rest) => {
  if (host !== '127.0.0.1') throw new Error(`${host} is not this machine`)
  return lookup(host, ...rest)
}
