// Loaded before Portkey's gateway, which has no option for its address: it listens on this machine alone.
const { Server } = require('node:net')

const listen = Server.prototype.listen
Server.prototype.listen = function (port, host, ...rest) {
  return listen.call(this, port, host ?? '127.0.0.1', ...rest)
}
