"""Events of orders to browsers and other clients, over WebSocket."""
