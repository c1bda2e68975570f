extension ClientLayout: LegibleLayout {
  public var fields: [Field] {
    [Field("who", flags & Self.isHost != 0 ? "node" : "pod")]
      + [("v4", v4), ("v6", v6)].filter { !$0.1.isZero }.map { Field($0.0, $0.1) }
  }
}

extension PeerKeyLayout: LegibleLayout {
  public var fields: [Field] { [Field("socket", cookie), peer.field("peer")] }
}

extension ConnectionLayout: LegibleLayout {
  public var fields: [Field] { [told.field("asked-for"), real.field("talks-to")] }
}
