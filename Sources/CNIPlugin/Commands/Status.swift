import LocalAPI
import NetworkTypes

/// STATUS: can an ADD be served? Asked by the runtime every few seconds, so it costs milliseconds and changes nothing.
enum Status {
  private static let agentMilliseconds = 500

  static func run(_ config: Config) throws(CNIError) {
    guard config.version >= .v1_1_0 else {
      throw CNIError(.incompatibleVersion, "cniVersion \(config.version.rawValue) has no STATUS")
    }
    let settings = try translating { () throws(CNIError) in
      try AttachmentConfig(config)
    } _: { error in
      let isPassing = error.code == .tryAgainLater || error.code == .io
      return isPassing ? CNIError(.notAvailable, error.message, details: error.details) : error
    }
    if config.requiresAgent { try askAgent(config) }
    switch settings.addresses {
    case .own(let pools, _, _, _): for pool in pools { try requireFreeAddress(pool, config) }
    case .plugin(let ipam): try ipam.status()
    }
  }

  static func hasAgent(_ config: Config) -> Bool {
    do throws(CNIError) {
      try askAgent(config)
      return true
    } catch {
      return false
    }
  }

  private static func askAgent(_ config: Config) throws(CNIError) {
    let answer = try translating { () throws(LocalAPIError) in
      try config.agent(timeoutMilliseconds: min(config.agentTimeout, agentMilliseconds))
        .request("GET", AgentPath.health)
    } _: {
      CNIError(.notAvailable, "the agent does not answer: \($0)")
    }
    guard answer.status == 200 else {
      throw CNIError(.notAvailable, "the agent answered \(answer.status): \(UnixHTTPClient.message(in: answer.body))")
    }
  }

  private static func requireFreeAddress(_ pool: AddressPool, _ config: Config) throws(CNIError) {
    let reserved = try translating { () throws(FileError) in
      try config.addresses.reservations()
    } _: {
      CNIError(.notAvailable, "\($0)")
    }
    let used = reserved.filter { pool.contains($0.address) }
    guard UInt128(used.count) >= pool.count else { return }
    // What ADD would take back counts as free.
    let bootID = try Attachment.bootID()
    let isReclaimable = used.contains { $0.owner.map { !Attachment.isAlive($0, bootID: bootID) } ?? false }
    guard isReclaimable else {
      throw CNIError(.notAvailable, "network \(config.name): all \(pool.count) addresses of \(pool) are in use")
    }
  }
}
